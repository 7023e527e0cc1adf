// SPDX-License-Identifier: GPL-2.0-or-later
import { BuildFailure, faultOf, SystemFailure } from "../../errors.ts";
import type { Host } from "../context.ts";
import { type Standby, standbyKind, waitingIn } from "./waiting.ts";
import { lookupOverlayPool } from "../storage/pools.ts";
import { findTemplate, type Template } from "../storage/template.ts";
import { chooseWarmImage, type WarmImage } from "../warm/warm_image.ts";
import {
  templateAdvice,
  type TemplateChoice,
  templatesToWait,
} from "../../policy/template_choice.ts";

/** The standby machines of one template that the settings want. */
export interface WantedStandbys {
  readonly choice: TemplateChoice;
  readonly count: number;
  /** See standbyKind. */
  readonly kind: string;
  /** The warm image to resume them from; null if they boot. */
  readonly image: WarmImage | null;
  /** As it was when the image was valid. */
  readonly template: Template;
}

/** The standby machines that the settings want. */
export interface FoundWanted {
  readonly wanted: readonly WantedStandbys[];
  /** Why some templates can have none. */
  readonly problems: Error[];
}

/** Finds the standby machines that the settings want. */
export async function findWanted(host: Host): Promise<FoundWanted> {
  const wanted: WantedStandbys[] = [];
  const problems: Error[] = [];
  for (const choice of templatesToWait(host.config)) {
    try {
      wanted.push(await lookupWanted(choice, host));
    } catch (error) {
      if (!(error instanceof SystemFailure || error instanceof BuildFailure)) throw error;
      problems.push(error);
    }
  }
  return { wanted, problems };
}

async function lookupWanted(choice: TemplateChoice, host: Host): Promise<WantedStandbys> {
  const { connection, config } = host;
  const { name, settings } = choice;
  const advise = templateAdvice(config, { isOperator: true });
  const template = await findTemplate(host, choice, advise);
  using pool = await lookupOverlayPool(host);
  const { image } = await chooseWarmImage(connection, pool, { name, template, settings });
  const kind = await standbyKind(template, settings);
  return { choice, count: settings.standby, kind, image, template };
}

/** How many of these wait, by the overlay pool's volumes. */
export function countWaiting({ kind }: WantedStandbys, volumes: readonly string[]): number {
  return waitingIn(volumes).filter((standby) => standby.kind === kind).length;
}

/**
 * The waiting machines that are not wanted, or too many, by the overlay pool's volumes. None if it is
 * unknown what is wanted: because of another problem than a template, such as its pool.
 */
export function unwantedOf(
  { wanted, problems }: FoundWanted,
  volumes: readonly string[],
): Standby[] {
  if (!problems.every((problem) => faultOf(problem) === "template")) return [];
  const left = new Map(wanted.map(({ kind, count }) => [kind, count]));
  return waitingIn(volumes).filter(({ kind }) => {
    const count = left.get(kind) ?? 0;
    left.set(kind, count - 1);
    return count <= 0;
  });
}
