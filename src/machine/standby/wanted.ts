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

/** Machines of one template that the settings want to wait, and what they are made of. */
export interface WantedStandbys {
  readonly choice: TemplateChoice;
  readonly count: number;
  /** See standbyKind. */
  readonly kind: string;
  /** The warm image to resume them from; null has them boot. */
  readonly image: WarmImage | null;
  /** As it was when the image held. */
  readonly template: Template;
}

/** What the settings want. */
export interface FoundWanted {
  readonly wanted: readonly WantedStandbys[];
  /** Of the templates of which none can wait, why. */
  readonly problems: Error[];
}

/** Finds what the settings want, and for the templates where that cannot be, why. */
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
  const asked = { ...choice, advise, pool: config.pools.templates };
  const template = await findTemplate(connection, asked);
  using pool = await lookupOverlayPool(host);
  const of = { name, template, settings };
  const { image } = await chooseWarmImage(connection, pool, of);
  const kind = await standbyKind(template, settings);
  return { choice, count: settings.standby, kind, image, template };
}

/** How many of these wait, of the volumes of the overlay pool. */
export function countWaiting({ kind }: WantedStandbys, volumes: readonly string[]): number {
  return waitingIn(volumes).filter((standby) => standby.kind === kind).length;
}

/**
 * Those that wait, of the volumes of the overlay pool, and are not wanted, or too many. None, as long
 * as something else than a template, such as its pool, keeps anybody from knowing what is wanted.
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
