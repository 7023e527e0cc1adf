// SPDX-License-Identifier: GPL-2.0-or-later
import { BuildFailure, SystemFailure } from "../../errors.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { isLibvirtError, VIR_ERR } from "../../libvirt/error.ts";
import { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Host } from "../context.ts";
import { lookupActivePool } from "./pools.ts";
import { completeVersions, imageVolume, newestVersions } from "./template_versions.ts";
import { isOurVolume, shownName } from "./volume_names.ts";
import { type Base, readVolumeXml, type VolumeFacts } from "./volumes.ts";
import {
  addedName,
  type TemplateAdvice,
  type TemplateChoice,
} from "../../policy/template_choice.ts";

/** A base image of overlays. */
export interface Template extends Base, Pick<VolumeFacts, "modified"> {
  /** The names of its pool and its volume. */
  readonly pool: string;
  readonly volume: string;
}

/**
 * The template in the first of these volumes that exists. If none does, throws BuildFailure with the advice
 * for the volumes that may hold one, or SystemFailure if the settings promise the template. Throws
 * SystemFailure if the pool cannot be used.
 */
export async function findTemplate(
  host: Pick<Host, "config" | "connection">,
  { name, volumes, isPromised }: Omit<TemplateChoice, "settings">,
  advise: TemplateAdvice,
): Promise<Template> {
  using pool = await lookupTemplatePool(host);
  const template = await findFirst(pool, volumes);
  if (template !== null) return template;
  // libvirt does not notice a file that was copied there.
  const refreshed = await refresh(pool);
  const copied = await findFirst(pool, volumes);
  if (copied !== null) return copied;
  const Failure = isPromised || !refreshed ? SystemFailure : BuildFailure;
  throw new Failure({
    fault: "template",
    what: `Cannot find the template "${name}" in the storage pool "${pool.name}"`,
    advice: advise(await templateVolumes(pool)),
  });
}

/**
 * The volumes that may hold a template, by names that jobs may give: an added template counts as those whose
 * place it takes. Throws SystemFailure if the pool cannot be used.
 */
export async function listTemplateVolumes(host: Host): Promise<string[]> {
  using pool = await lookupTemplatePool(host);
  await refresh(pool);
  return await templateVolumes(pool);
}

/**
 * Checks that the template is still the one that {@linkcode findTemplate} found: QEMU opens whatever file
 * has its name now, for which the overlay is wrong. Throws SystemFailure.
 */
export async function requireUnchanged(connection: Connection, template: Template): Promise<void> {
  using pool = await StoragePool.lookup(connection, template.pool);
  using volume = await pool.findVolume(template.volume);
  const now = volume && readVolumeXml(await volume.xml());
  if (now?.modified === template.modified && now.capacityBytes === template.capacityBytes) return;
  throw new SystemFailure({
    fault: "template",
    what: `The template "${
      shownName(template.volume)
    }" was replaced or modified while a machine was created from it`,
    advice: "Retry the job, if GitLab Runner does not retry it",
  });
}

/** The template pool. Throws SystemFailure if it cannot be used. */
export function lookupTemplatePool(
  { connection, config }: Pick<Host, "config" | "connection">,
): Promise<StoragePool> {
  return lookupActivePool(connection, config.pools.templates, "pools.templates");
}

/**
 * What `template add` put into the pool as NAME takes the place of the volumes NAME.qcow2 and NAME. An older
 * version is for when the newest was removed just now.
 */
async function findFirst(pool: StoragePool, volumes: readonly string[]): Promise<Template | null> {
  const plain = volumes.filter((name) => !isOurVolume(name));
  const versions = completeVersions(await pool.volumeNames());
  const added = plain.flatMap((name) => versions.get(addedName(name)) ?? []).map(imageVolume);
  for (const name of [...added, ...plain]) {
    using volume = await pool.findVolume(name);
    if (volume === null) continue;
    const path = await volume.path();
    const { format, capacityBytes, modified } = readVolumeXml(await volume.xml());
    const template = { pool: pool.name, volume: name, path, format, capacityBytes, modified };
    if (name.endsWith(".qcow2") && template.format !== "qcow2") throw corrupt(template);
    return template;
  }
  return null;
}

/** A machine would start from it as from a raw disk, and not boot. */
function corrupt({ volume, path, format }: Template): SystemFailure {
  return new SystemFailure({
    fault: "template",
    what:
      `The template's disk "${volume}" is not a qcow2 image: libvirt detects the format "${format}"`,
    advice: `Check it: qemu-img check ${path}; then create the template again`,
  });
}

/** Whether it refreshed the pool. libvirt refuses while it creates another volume there. */
async function refresh(pool: StoragePool): Promise<boolean> {
  try {
    await pool.refresh();
    return true;
  } catch (error) {
    if (isLibvirtError(error, VIR_ERR.INTERNAL_ERROR, VIR_ERR.OPERATION_INVALID)) return false;
    throw error;
  }
}

/** Whether a volume of this name may hold a template: it is not ours, nor incomplete. */
export function isTemplateVolume(name: string): boolean {
  return !isOurVolume(name) && !name.startsWith(".");
}

async function templateVolumes(pool: StoragePool): Promise<string[]> {
  const volumes = await pool.volumeNames();
  const added = newestVersions(volumes).flatMap(({ template }) => [`${template}.qcow2`, template]);
  const plain = volumes.filter((volume) => isTemplateVolume(volume) && volume !== "lost+found");
  return [...new Set([...added, ...plain])];
}
