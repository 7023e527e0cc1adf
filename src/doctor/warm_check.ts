// SPDX-License-Identifier: GPL-2.0-or-later
import { findTemplate, type Template } from "../machine/storage/template.ts";
import { chooseWarmImage } from "../machine/warm/warm_image.ts";
import { findActivePool } from "../machine/storage/pools.ts";
import { isAlive, standbyKind, waitingIn } from "../machine/standby/waiting.ts";
import { BuildFailure, SystemFailure } from "../errors.ts";
import { type TemplateChoice, templatesToResume } from "../policy/template_choice.ts";
import type { DoctorContext } from "./check.ts";
import { type Finding, ok, warning } from "./finding.ts";

/** Whether the templates of the settings whose machines are to be resumed can be. */
export async function checkWarmImages(context: DoctorContext): Promise<Finding[]> {
  const choices = templatesToResume(context.config);
  return (await Promise.all(choices.map((choice) => checkWarmImage(choice, context)))).flat();
}

async function checkWarmImage(
  { name, settings, ...choice }: TemplateChoice,
  { connection, config }: DoctorContext,
): Promise<Finding[]> {
  if (connection instanceof Error) return []; // checkDaemon() says so
  let template: Template;
  try {
    template = await findTemplate(connection, {
      ...{ ...choice, name, pool: config.templatePool, advise: () => "" },
    });
  } catch (error) {
    // checkTemplates() says so.
    if (error instanceof BuildFailure || error instanceof SystemFailure) return [];
    throw error;
  }
  using pool = await findActivePool(connection, config.overlayPool);
  const of = { name, template, settings };
  const { image, changes } = pool
    ? await chooseWarmImage(connection, pool, of)
    : { image: null, changes: null };
  if (pool !== null && image !== null) {
    const kind = await standbyKind({ imageId: image.id, settings });
    let waiting = 0;
    for (const standby of waitingIn(await pool.volumeNames())) {
      if (standby.kind === kind && await isAlive(standby, connection)) waiting++;
    }
    return [
      ok(`The warm image of "${name}" holds: made ${image.created}`),
      ...checkWaiting(name, { waiting, wanted: settings.standby }),
    ];
  }
  const why = changes === null
    ? `The template "${name}" has no warm image`
    : `The warm image of "${name}" was made before a change of ${changes}`;
  const meaning = "Its machines boot, which takes longer";
  return [warning(why, { meaning, remedy: `libvirt-gci warm ${name}` })];
}

/** Whether as many machines wait for jobs as the settings want. */
function checkWaiting(
  template: string,
  { waiting, wanted }: { readonly waiting: number; readonly wanted: number },
): Finding[] {
  if (wanted === 0) return [];
  const what = `${waiting} of ${wanted} machines of "${template}" wait for a job`;
  if (waiting >= wanted) return [ok(what)];
  return [
    warning(what, {
      meaning: "The next jobs wait longer; after a job it is so for a moment, or there was no room",
      remedy: "libvirt-gci standby",
    }),
  ];
}
