// SPDX-License-Identifier: GPL-2.0-or-later
import { argument, switchFlag } from "../../cli/arguments.ts";
import { defineCommand } from "../../cli/command.ts";
import { PROGRAM } from "../../cli/program_name.ts";
import { addTemplate, removeUnused } from "./template_add.ts";
import { type FetchContext, fetchRequested, isSourceUnchanged, keptOf } from "./template_source.ts";
import { SystemFailure, UsageError } from "../../errors.ts";
import type { Context } from "../../machine/context.ts";
import { lookupTemplatePool } from "../../machine/storage/template.ts";
import {
  newestVersions,
  readVersionInfo,
  type TemplateVersion,
} from "../../machine/storage/template_versions.ts";
import { Problems } from "../../problems.ts";
import { quoted } from "../../quoted.ts";

export const templateUpdate = defineCommand("update", {
  description: "Read the source of a template again, and replace the template if that has changed.",
  footer:
    "A template that was added with `--sha256`, or with a login or a query in its URL, stays as it is.",
  fields: {
    all: switchFlag("--all", "Update all templates that `template add` created."),
    name: argument("NAME", "The template's name."),
  },
  check: ({ name, all }) => {
    if ((name !== undefined) !== all) return;
    throw new UsageError({
      what: "The command template update needs the name of a template, or --all",
      advice: `List the templates: ${PROGRAM} template list`,
    });
  },
  run: ({ name = null }, { env, onHost }) =>
    onHost((context) => updateTemplates(name, { env, context })),
});

/** What an update needs. */
interface UpdateContext extends FetchContext {
  readonly context: Context;
}

/** Updates this template, or all. A failure does not stop the others. Throws SystemFailure in the end. */
export async function updateTemplates(name: string | null, fetching: UpdateContext): Promise<void> {
  const { host, report: { log }, signal } = fetching.context;
  using pool = await lookupTemplatePool(host);
  const added = newestVersions(await pool.volumeNames());
  const chosen = added.filter(({ template }) => name === null || template === name);
  if (name !== null && chosen.length === 0) {
    throw new SystemFailure({
      fault: "template",
      what: `The storage pool "${pool.name}" has no template ${quoted(name)} of template add`,
      advice: `List the templates: ${PROGRAM} template list`,
    });
  }
  if (chosen.length === 0) log(`There are no templates of ${PROGRAM} template add`);
  const problems = new Problems();
  for (const version of chosen) {
    await problems.collect(() => updateTemplate(version, fetching), signal);
  }
  const { errors } = problems;
  if (errors.length === 1) throw errors[0];
  problems.throwAll({ what: `Cannot update ${errors.length} templates` });
}

async function updateTemplate(version: TemplateVersion, fetching: UpdateContext): Promise<void> {
  const { context } = fetching;
  const { template } = version;
  const { host, report: { log } } = context;
  using pool = await lookupTemplatePool(host);
  await removeUnused(pool, template, context);
  const known = await readVersionInfo(pool, version);
  if (known === null || known.isPinned) {
    const why = known === null
      ? "its source is unknown"
      : "it was added with --sha256, or with a login or a query in its URL";
    log(`The template "${template}" is not updated, because ${why}`);
    return;
  }
  if (await isSourceUnchanged(known, fetching)) {
    log(`The template "${template}" is up to date`);
    return;
  }
  const { image, version: found } = await fetchRequested(known, fetching);
  await using _ = image;
  await addTemplate(template, image, { info: keptOf(known, found), context });
}
