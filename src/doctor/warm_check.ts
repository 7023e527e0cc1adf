// SPDX-License-Identifier: GPL-2.0-or-later
import type { LibvirtContext } from "./check.ts";
import { type Finding, type Found, ok, warning } from "./finding.ts";
import { BuildFailure, SystemFailure } from "../errors.ts";
import type { Connection } from "../libvirt/connection.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import { isAlive, standbyKind, waitingIn } from "../machine/standby/waiting.ts";
import { findActivePool } from "../machine/storage/pools.ts";
import { findTemplate, type Template } from "../machine/storage/template.ts";
import { chooseWarmImage } from "../machine/warm/warm_image.ts";
import { type TemplateChoice, templatesToResume } from "../policy/template_choice.ts";

export async function checkWarmImages(context: LibvirtContext): Promise<Found> {
  const choices = templatesToResume(context.config);
  return await Promise.all(choices.map((choice) => checkWarmImage(choice, context)));
}

async function checkWarmImage(choice: TemplateChoice, context: LibvirtContext): Promise<Found> {
  const { connection, config } = context;
  const { name, settings } = choice;
  const template = await templateOf(choice, context);
  if (template === null) return null;
  using pool = await findActivePool(connection, config.pools.overlays);
  if (pool === null) return missingImage(name, null);
  const of = { name, template, settings };
  const { image, changes } = await chooseWarmImage(connection, pool, of);
  const kind = await standbyKind(template, settings);
  return [
    image !== null
      ? ok(`The warm image of "${name}" is up to date, created ${image.created}`)
      : settings.start === "cold" && changes === null
      ? null
      : missingImage(name, changes),
    checkWaiting(name, await countWaiting(kind, pool, connection), settings.standby),
  ];
}

/** The template, or null if there is none: checkTemplates() says so. */
async function templateOf(
  choice: TemplateChoice,
  context: LibvirtContext,
): Promise<Template | null> {
  try {
    return await findTemplate(context, choice, () => "");
  } catch (error) {
    if (error instanceof BuildFailure || error instanceof SystemFailure) return null;
    throw error;
  }
}

function missingImage(name: string, changes: string | null): Finding {
  const subject = changes === null
    ? `The template "${name}" has no warm image`
    : `The warm image of "${name}" is out of date: ${changes} changed`;
  return warning(subject, {
    meaning: "Its machines boot instead, which is slower",
    remedy: `libvirt-gci warm ${name}`,
  });
}

async function countWaiting(
  kind: string,
  pool: StoragePool,
  connection: Connection,
): Promise<number> {
  let count = 0;
  for (const standby of waitingIn(await pool.volumeNames())) {
    if (standby.kind === kind && await isAlive(standby, connection)) count++;
  }
  return count;
}

function checkWaiting(template: string, waiting: number, wanted: number): Finding | null {
  if (wanted === 0) return null;
  const subject = `${waiting} of ${wanted} standby machines of "${template}" are ready`;
  if (waiting >= wanted) return ok(subject);
  return warning(subject, {
    meaning:
      "The next jobs start more slowly. This is normal just after a job. Otherwise the host has no room",
    remedy: "libvirt-gci standby",
  });
}
