// SPDX-License-Identifier: GPL-2.0-or-later
import type { LibvirtContext } from "./check.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Domain } from "../libvirt/domain.ts";
import { orNull, VIR_ERR } from "../libvirt/error.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import { findActivePool } from "../machine/storage/pools.ts";
import { isTemplateVolume } from "../machine/storage/template.ts";
import { imageVolume, newestVersions } from "../machine/storage/template_versions.ts";
import { writtenDisks } from "../machine/storage/template_writer.ts";
import { machineOfVolume, shownName } from "../machine/storage/volume_names.ts";
import { readVolumeXml, type VolumeFacts } from "../machine/storage/volumes.ts";

export interface HostDomain {
  readonly name: string;
  readonly isActive: boolean;
  readonly xml: string;
}

export interface TemplateVolume extends VolumeFacts {
  /** The volume's; of an added template the name that jobs know. */
  readonly name: string;
  /** Whether it is the newest version of an added template. */
  readonly isAdded: boolean;
}

/** The templates of a host, and who uses them. */
export interface TemplateHost {
  /** The volumes of the template pool, by path. */
  readonly volumes: ReadonlyMap<string, TemplateVolume>;
  /** The machines' disks that stand on the file of a path. */
  readonly overlays: ReadonlyMap<string | null, readonly TemplateVolume[]>;
  /** The domains that write to the file of a path. */
  readonly writers: ReadonlyMap<string, readonly HostDomain[]>;
}

/** Reads them; null if the pool of templates cannot be used. */
export async function readTemplateHost(context: LibvirtContext): Promise<TemplateHost | null> {
  const { connection, config } = context;
  using pool = await findActivePool(connection, config.pools.templates);
  if (pool === null) return null;
  const newest = new Set(newestVersions(await pool.volumeNames()).map(imageVolume));
  const volumes = await readVolumes(pool, (name) => isTemplateVolume(name) || newest.has(name));
  return {
    volumes: new Map(volumes.map((volume) => [volume.path, volume])),
    overlays: await readOverlays(context),
    writers: findWriters(volumes, await listDomains(connection), context),
  };
}

async function listDomains(connection: Connection): Promise<HostDomain[]> {
  using domains = await Domain.listAll(connection);
  const described: HostDomain[] = [];
  for (const domain of domains) {
    const xml = await orNull(VIR_ERR.NO_DOMAIN, domain.xml()); // it may end at any moment
    if (xml !== null) described.push({ name: domain.name, isActive: await domain.isActive(), xml });
  }
  return described;
}

/** The volume's file and its backing files, as far as the pool knows them. */
export function chainOf(volume: TemplateVolume, { volumes }: TemplateHost): string[] {
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
): Promise<TemplateVolume[]> {
  const volumes: TemplateVolume[] = [];
  for (const name of (await pool.volumeNames()).filter(isWanted).sort()) {
    using volume = await pool.findVolume(name);
    if (volume === null) continue;
    const volumeXml = await orNull(VIR_ERR.NO_STORAGE_VOL, volume.xml());
    if (volumeXml === null) continue; // its file is gone, as that of a machine soon may be
    const facts = readVolumeXml(volumeXml);
    if (facts.format === "dir") continue; // such as lost+found
    const shown = shownName(name);
    volumes.push({ ...facts, name: shown, isAdded: shown !== name });
  }
  return volumes;
}

async function readOverlays(
  { connection, config }: LibvirtContext,
): Promise<TemplateHost["overlays"]> {
  using pool = await findActivePool(connection, config.pools.overlays);
  if (pool === null) return new Map();
  const disks = await readVolumes(pool, (name) => machineOfVolume(name) !== null);
  return Map.groupBy(disks, ({ backing }) => backing);
}

/** Our own machines write to their overlays, which the XML has above the template. */
function findWriters(
  volumes: readonly TemplateVolume[],
  domains: readonly HostDomain[],
  { config }: LibvirtContext,
): Map<string, HostDomain[]> {
  const writers = new Map<string, HostDomain[]>();
  for (const domain of domains) {
    for (const { path: own, pool, volume } of writtenDisks(domain.xml)) {
      const named = pool === config.pools.templates
        ? volumes.find(({ name }) => name === volume)?.path
        : undefined;
      const path = own ?? named;
      if (path !== undefined) writers.set(path, (writers.get(path) ?? []).concat(domain));
    }
  }
  return writers;
}
