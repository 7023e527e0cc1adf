// SPDX-License-Identifier: GPL-2.0-or-later
import { oneArgument } from "../../cli/arguments.ts";
import { defineCommand } from "../../cli/command.ts";
import { PROGRAM } from "../../cli/program_name.ts";
import { SystemFailure } from "../../errors.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Context } from "../../machine/context.ts";
import { lookupTemplatePool } from "../../machine/storage/template.ts";
import { findUsers, type TemplateUsers } from "../../machine/storage/template_users.ts";
import {
  completeVersions,
  imageVolume,
  removeVersion,
  type TemplateVersion,
} from "../../machine/storage/template_versions.ts";
import { quoted } from "../../quoted.ts";
import { virsh } from "../../shell.ts";

export const templateRemove = defineCommand("remove", {
  description: "Remove a template that `template add` created, unless it is in use.",
  fields: { name: oneArgument("NAME", "The template's name.") },
  run: ({ name }, { onHost }) => onHost((context) => removeTemplate(name, context)),
});

/** Removes all versions of the template. Throws SystemFailure if one is in use, or there is none. */
export async function removeTemplate(name: string, context: Context): Promise<void> {
  const { host, report: { log } } = context;
  using pool = await lookupTemplatePool(host);
  const volumes = await pool.volumeNames();
  const versions = completeVersions(volumes).get(name) ?? [];
  const plain = [`${name}.qcow2`, name].filter((volume) => volumes.includes(volume));
  if (versions.length === 0) throw noTemplate(name, plain, pool);
  const usersOf = await findUsers(host);
  for (const version of versions) {
    const path = await pathOf(pool, version);
    const users = path === null ? [] : usersAsWords(usersOf(path));
    if (users.length > 0) throw inUse(name, users);
  }
  for (const version of versions.toReversed()) await removeVersion(pool, version); // the newest last
  log(`Removed the template "${name}"`);
  for (const volume of plain) log(`Jobs that ask for it get the volume "${volume}"`);
}

async function pathOf(pool: StoragePool, version: TemplateVersion): Promise<string | null> {
  using volume = await pool.findVolume(imageVolume(version));
  return volume && await volume.path();
}

function usersAsWords({ machines, warmImages, volumes }: TemplateUsers): string[] {
  return [
    ...machines.map((machine) => `the machine "${machine}"`),
    ...warmImages.map((template) => `the warm image of "${template}"`),
    ...volumes.map((volume) => `the volume "${volume}"`),
  ];
}

function inUse(name: string, users: readonly string[]): SystemFailure {
  return new SystemFailure({
    fault: "template",
    what: `The template "${name}" is in use by ${users.join(", ")}`,
    advice: `Wait for the jobs, or remove what uses it: ${PROGRAM} cleanup --machine MACHINE, ` +
      `${PROGRAM} warm --remove TEMPLATE`,
  });
}

function noTemplate(name: string, plain: readonly string[], pool: StoragePool): SystemFailure {
  const [volume] = plain;
  return new SystemFailure({
    fault: "template",
    what: volume === undefined
      ? `The storage pool "${pool.name}" has no template ${quoted(name)}`
      : `The template "${name}" was not created by ${PROGRAM} template add`,
    advice: volume === undefined
      ? `List the templates: ${PROGRAM} template list`
      : `Remove its volume, if no machine uses it: ${
        virsh(pool, "vol-delete", "--pool", pool.name, volume)
      }`,
  });
}
