// SPDX-License-Identifier: GPL-2.0-or-later
import { BuildFailure, SystemFailure } from "../../errors.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { isLibvirtError, VIR_ERR } from "../../libvirt/error.ts";
import { StoragePool } from "../../libvirt/storage_pool.ts";
import { lookupActivePool } from "./pools.ts";
import { isOurVolume } from "./volume_names.ts";
import { type Base, readVolumeXml } from "./volumes.ts";

/** A base image that overlays stand on. */
export interface Template extends Base {
  /** The names of its pool and its volume. */
  readonly pool: string;
  readonly volume: string;
  /** When it was last written to, as libvirt has it; empty where the kind of pool has no such time. */
  readonly modified: string;
}

/**
 * The template that the first of these volumes holds. If there is none, throws BuildFailure, or
 * SystemFailure if the settings promise one; the same if the pool cannot be used.
 */
export async function findTemplate(
  connection: Connection,
  { pool: poolName, name, volumes, isPromised, advise }: {
    readonly pool: string;
    readonly name: string;
    readonly volumes: readonly string[];
    readonly isPromised: boolean;
    /** What to do if it is not there, given the volumes that may hold one. */
    readonly advise: (volumes: readonly string[]) => string;
  },
): Promise<Template> {
  using pool = await lookupActivePool(connection, poolName, "pools.templates");
  const template = await findFirst(pool, volumes);
  if (template !== null) return template;
  // Somebody may have copied it there, which libvirt does not see by itself.
  const refreshed = await refresh(pool);
  const copied = await findFirst(pool, volumes);
  if (copied !== null) return copied;
  const Failure = isPromised || !refreshed ? SystemFailure : BuildFailure;
  throw new Failure({
    fault: "template",
    what: `Cannot find the template "${name}" in the storage pool "${poolName}"`,
    advice: advise(await templateVolumes(pool)),
  });
}

/** The names of the volumes that may hold a template. Throws as {@linkcode findTemplate} does. */
export async function listTemplateVolumes(
  connection: Connection,
  poolName: string,
): Promise<string[]> {
  using pool = await lookupActivePool(connection, poolName, "pools.templates");
  await refresh(pool);
  return await templateVolumes(pool);
}

/**
 * Sees that the template is still what {@linkcode findTemplate} found: a disk that was made for
 * another version has another size, and QEMU opens whatever has the name now. Throws SystemFailure.
 */
export async function requireUnchanged(connection: Connection, template: Template): Promise<void> {
  using pool = await StoragePool.lookup(connection, template.pool);
  using volume = await pool.findVolume(template.volume);
  const now = volume && readVolumeXml(await volume.xml());
  if (now?.modified === template.modified && now.capacityBytes === template.capacityBytes) return;
  throw new SystemFailure({
    fault: "template",
    what:
      `The template "${template.volume}" was replaced or written to while a machine was made of it`,
    advice: "Run the job again, which GitLab Runner does by itself",
  });
}

async function findFirst(pool: StoragePool, volumes: readonly string[]): Promise<Template | null> {
  for (const name of volumes.filter((name) => !isOurVolume(name))) {
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

/** As a raw disk it would start, and boot nothing. */
function corrupt({ volume, path, format }: Template): SystemFailure {
  return new SystemFailure({
    fault: "template",
    what: `The template's disk "${volume}" is no qcow2 image: libvirt takes it for "${format}"`,
    advice: `Look at it: qemu-img check ${path}; then make the template again`,
  });
}

/** Whether the refresh took place. libvirt refuses one while another job's volume is being made. */
async function refresh(pool: StoragePool): Promise<boolean> {
  try {
    await pool.refresh();
    return true;
  } catch (error) {
    if (isLibvirtError(error, VIR_ERR.INTERNAL_ERROR, VIR_ERR.OPERATION_INVALID)) return false;
    throw error;
  }
}

/** Whether a volume of this name may hold a template: it is not a machine's, nor in the making. */
export function isTemplateVolume(name: string): boolean {
  return !isOurVolume(name) && !name.startsWith(".");
}

async function templateVolumes(pool: StoragePool): Promise<string[]> {
  return (await pool.volumeNames()).filter((volume) =>
    isTemplateVolume(volume) && volume !== "lost+found"
  );
}
