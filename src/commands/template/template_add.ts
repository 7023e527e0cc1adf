// SPDX-License-Identifier: GPL-2.0-or-later
import { gib } from "../../bytes.ts";
import { oneArgument, option } from "../../cli/arguments.ts";
import { defineCommand } from "../../cli/command.ts";
import { PROGRAM } from "../../cli/program_name.ts";
import { checkRequest, fetchRequested, keptOf } from "./template_source.ts";
import { durationText } from "../../duration.ts";
import { SystemFailure, UsageError } from "../../errors.ts";
import type { LocalImage } from "../../image/image.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Context } from "../../machine/context.ts";
import { lookupTemplatePool } from "../../machine/storage/template.ts";
import { uploadVersion } from "../../machine/storage/template_upload.ts";
import { findUsers, removableVersions } from "../../machine/storage/template_users.ts";
import {
  completeVersions,
  imageVolume,
  removeVersion,
  type SourceInfo,
  type TemplateVersion,
} from "../../machine/storage/template_versions.ts";
import { isOurVolume } from "../../machine/storage/volume_names.ts";
import {
  chooseTemplate,
  type TemplateChoice,
  templatesToResume,
} from "../../policy/template_choice.ts";
import { Problems } from "../../problems.ts";
import { quoted } from "../../quoted.ts";
import { TEMPLATE_NAME } from "../../settings/kinds.ts";
import type { Config } from "../../settings/settings.ts";
import { virsh } from "../../shell.ts";

export const templateAdd = defineCommand("add", {
  description: "Add an image to the templates, or replace the template of this name.",
  footer:
    "Jobs get the new template once it is complete. Running jobs continue with the old one, which is removed after them.",
  fields: {
    sha256: {
      ...option("--sha256", "HEX", "The SHA-256 that the source must have."),
      form: { pattern: /^[\da-f]{64}$/i, hint: "Write 64 hexadecimal digits." },
    },
    checksums: option(
      "--checksums",
      "SOURCE",
      "The publisher's checksums, a file or a URL, by which the image is checked.",
    ),
    keyring: option("--keyring", "FILE", "The public keys, of which one must sign the checksums."),
    name: oneArgument("NAME", "The template's name, as jobs ask for it."),
    source: oneArgument(
      "SOURCE",
      "The image, in the format qcow2 or raw: a file, an https:// URL, or oci://REGISTRY/NAME:TAG.",
    ),
  },
  check: ({ name, ...request }) => {
    refuseName(name);
    checkRequest(request);
  },
  run: async ({ name, ...request }, { settings, env, onHost }) => {
    refuseTakenName(await settings(), name);
    await onHost(async (context) => {
      const { image, version } = await fetchRequested(request, { env, context });
      await using _ = image;
      await addTemplate(name, image, { info: keptOf(request, version), context });
    });
  },
});

/** Throws UsageError unless jobs can ask for it by this name. */
function refuseName(name: string): void {
  if (TEMPLATE_NAME.test(name) && !name.endsWith(".qcow2") && !isOurVolume(name)) return;
  throw new UsageError({
    what: `${quoted(name)} is not a valid name of a new template`,
    advice: "Use letters, digits, '.', '_', '+' and '-', up to 128, without .qcow2 at the end",
  });
}

/** Throws SystemFailure if jobs that ask for it by this name get another. */
function refuseTakenName(config: Config, name: string): TemplateChoice {
  const choice = chooseTemplate(config, name, { isOperator: true });
  const { volumes } = choice;
  if (volumes.includes(name) || volumes.includes(`${name}.qcow2`)) return choice;
  throw new SystemFailure({
    fault: "settings",
    what: `The settings give jobs that ask for the template "${name}" the volume ` +
      volumes.map((volume) => `"${volume}"`).join(" or "),
    advice: choice.name === name
      ? `Remove "templates.${name}.volume" from the settings, or choose another name`
      : `Use another name: this is one of the template "${choice.name}"`,
  });
}

/** Adds a version of the template, and removes those that nobody uses any more. Throws SystemFailure. */
export async function addTemplate(
  name: string,
  image: LocalImage,
  { info, context }: {
    readonly info: SourceInfo;
    readonly context: Context;
  },
): Promise<void> {
  const { host, report: { log, warn } } = context;
  const { config, connection } = host;
  const start = performance.now();
  const version = await uploadVersion(name, image, { info, context });
  const seconds = (performance.now() - start) / 1000;
  using pool = await lookupTemplatePool(host);
  const volumes = await pool.volumeNames();
  const [newest, ...older] = completeVersions(volumes).get(name) ?? [];
  const { format, virtualBytes } = image;
  log(
    `${older.length > 0 ? "Replaced" : "Added"} the template "${name}" (${format}, ` +
      `${gib(virtualBytes)} GiB) in ${durationText(seconds)}`,
  );
  if (newest !== undefined && newest.id !== version.id) {
    warn(`Jobs get a newer version of "${name}", which another process added meanwhile`);
  }
  for (const hidden of [`${name}.qcow2`, name].filter((volume) => volumes.includes(volume))) {
    warn(
      `Jobs do not use the volume "${hidden}" any more. If you do not need it, remove it: ` +
        virsh(connection, "vol-delete", "--pool", pool.name, hidden),
    );
  }
  await removeUnused(pool, name, context);
  await tellUsers(pool, older, context);
  const choice = chooseTemplate(config, name, { isOperator: true });
  if (older.length > 0 && templatesToResume(config).some((it) => it.name === choice.name)) {
    log(`Create its warm image again: ${PROGRAM} warm ${choice.name}`);
  }
}

/** Removes the versions of the template that nobody needs. What cannot be removed is left to gc. */
export async function removeUnused(
  pool: StoragePool,
  template: string,
  { host, report }: Context,
): Promise<void> {
  const problems = new Problems();
  for (const version of await removableVersions(pool, host)) {
    if (version.template === template) await problems.collect(() => removeVersion(pool, version));
  }
  if (problems.errors.length > 0) {
    report.warn(`An old version of "${template}" could not be removed. ${PROGRAM} gc tries again`);
  }
}

async function tellUsers(
  pool: StoragePool,
  older: readonly TemplateVersion[],
  { host, report: { log } }: Context,
): Promise<void> {
  const volumes = await pool.volumeNames();
  const left = older.filter((version) => volumes.includes(imageVolume(version)));
  if (left.length === 0) return;
  const usersOf = await findUsers(host);
  const machines = new Set<string>();
  for (const version of left) {
    using volume = await pool.findVolume(imageVolume(version));
    if (volume !== null) usersOf(await volume.path()).machines.forEach((it) => machines.add(it));
  }
  const who = machines.size === 0
    ? "It is still needed"
    : machines.size === 1
    ? "1 machine continues with it"
    : `${machines.size} machines continue with it`;
  log(`The old version stays for now. ${who}; ${PROGRAM} gc removes it later`);
}
