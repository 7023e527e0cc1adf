// SPDX-License-Identifier: GPL-2.0-or-later
import { orNull, VIR_ERR } from "../libvirt/error.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import { findActivePool } from "../machine/storage/pools.ts";
import { isMachineVolume, machineOfVolume } from "../machine/storage/volumes.ts";
import { find, rootOf, textAt } from "../read_xml.ts";
import { writtenDisks } from "../machine/storage/template_writer.ts";
import type { DoctorContext, HostDomain } from "./check.ts";

/** A volume, as its XML has it. */
export interface VolumeFacts {
  readonly name: string;
  readonly path: string;
  readonly format: string;
  readonly capacity: number;
  /** The path of the file that it stands on; null if it stands alone. */
  readonly backing: string | null;
}

/** The templates of a host, and who uses them. */
export interface TemplateHost {
  /** The volumes of the template pool, by path. */
  readonly volumes: ReadonlyMap<string, VolumeFacts>;
  /** The paths of the machines' disks that stand on the file of a path. */
  readonly overlays: ReadonlyMap<string, readonly string[]>;
  /** The domains that write to the file of a path. */
  readonly writers: ReadonlyMap<string, readonly HostDomain[]>;
}

/** Reads them; null if the pool of templates cannot be used. */
export async function readTemplateHost(context: DoctorContext): Promise<TemplateHost | null> {
  const { connection, config } = context;
  if (connection instanceof Error) return null;
  using pool = await findActivePool(connection, config.templatePool);
  if (pool === null) return null;
  const volumes = await readVolumes(
    pool,
    (name) => !isMachineVolume(name) && !name.startsWith("."), // one in the making
  );
  return {
    volumes: new Map(volumes.map((volume) => [volume.path, volume])),
    overlays: await readOverlays(context),
    writers: findWriters(volumes, await context.factsOf(connection).domains(), context),
  };
}

/** The volume's file and all that it stands on, as far as the pool knows them. */
export function chainOf(volume: VolumeFacts, { volumes }: TemplateHost): string[] {
  const chain = [volume.path];
  let next = volume.backing;
  while (next !== null && !chain.includes(next)) {
    chain.push(next);
    next = volumes.get(next)?.backing ?? null;
  }
  return chain;
}

async function readVolumes(
  pool: StoragePool,
  isWanted: (name: string) => boolean,
): Promise<VolumeFacts[]> {
  const volumes: VolumeFacts[] = [];
  for (const name of (await pool.volumeNames()).filter(isWanted).sort()) {
    using volume = await pool.findVolume(name);
    if (volume === null) continue;
    const volumeXml = await orNull(VIR_ERR.NO_STORAGE_VOL, volume.xml());
    if (volumeXml === null) continue; // its file is gone, as that of a machine soon may be
    const root = rootOf(volumeXml);
    const format = find(root, "target", "format")?.attributes["type"] ?? "raw";
    if (format === "dir") continue; // such as lost+found
    volumes.push({
      name,
      path: textAt(root, "target", "path") ?? "",
      format,
      capacity: Number(textAt(root, "capacity")),
      backing: textAt(root, "backingStore", "path"),
    });
  }
  return volumes;
}

async function readOverlays({ connection, config }: DoctorContext): Promise<Map<string, string[]>> {
  const overlays = new Map<string, string[]>();
  if (connection instanceof Error) return overlays;
  using pool = await findActivePool(connection, config.overlayPool);
  if (pool === null) return overlays;
  for (
    const { path, backing } of await readVolumes(pool, (name) => machineOfVolume(name) !== null)
  ) {
    if (backing !== null) overlays.set(backing, [...overlays.get(backing) ?? [], path]);
  }
  return overlays;
}

/** Our own machines write to their overlays, which the XML has above the template. */
function findWriters(
  volumes: readonly VolumeFacts[],
  domains: readonly HostDomain[],
  { config }: DoctorContext,
): Map<string, HostDomain[]> {
  const writers = new Map<string, HostDomain[]>();
  for (const domain of domains) {
    for (const { path: own, pool, volume } of writtenDisks(domain.xml)) {
      const named = pool === config.templatePool
        ? volumes.find(({ name }) => name === volume)?.path
        : undefined;
      const path = own ?? named;
      if (path !== undefined) writers.set(path, [...writers.get(path) ?? [], domain]);
    }
  }
  return writers;
}
