// SPDX-License-Identifier: GPL-2.0-or-later
import type { XmlElement } from "@rgrove/parse-xml";
import type { Connection } from "../../libvirt/connection.ts";
import { Domain } from "../../libvirt/domain.ts";
import { orNull, VIR_ERR } from "../../libvirt/error.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Host } from "../context.ts";
import { findActivePool } from "./pools.ts";
import { type DeadVersion, deadVersions, imageVolume } from "./template_versions.ts";
import { ofKind, parseVolume } from "./volume_names.ts";
import { readVolumeXml } from "./volumes.ts";
import { childrenOf, find, rootOf } from "../../read_xml.ts";

/** What stands on the file of a template. */
export interface TemplateUsers {
  /** The names of machines, and of other domains. */
  readonly machines: readonly string[];
  /** The templates of warm images, by their names in the settings. */
  readonly warmImages: readonly string[];
  /** Other volumes of the overlay pool. */
  readonly volumes: readonly string[];
}

/** The users of the file of a path. */
export type FindUsers = (path: string) => TemplateUsers;

/** Finds out what stands on which file: the volumes of the overlay pool, and the disks of all domains. */
export async function findUsers({ connection, config }: Host): Promise<FindUsers> {
  using pool = await findActivePool(connection, config.pools.overlays);
  const volumes = pool === null ? [] : await volumesWithBacking(pool);
  const domains = await domainsWithFiles(connection);
  return (path) => {
    const on = volumes.filter(({ backing }) => backing === path).map(({ volume }) => volume);
    const kinds = on.map((volume) => [volume, parseVolume(volume)] as const);
    const named = (kind: string): string[] =>
      kinds.flatMap(([, parsed]) => parsed?.kind === kind ? [parsed.name] : []);
    const running = domains.filter(({ files }) => files.has(path)).map(({ name }) => name);
    return {
      machines: [...new Set([...named("overlay"), ...running])].sort(),
      warmImages: [...new Set(named("warm-disk"))].sort(),
      volumes: kinds.filter(([, it]) => it?.kind !== "overlay" && it?.kind !== "warm-disk")
        .map(([volume]) => volume),
    };
  };
}

/** Whether nothing stands on it. */
export function isUnused({ machines, warmImages, volumes }: TemplateUsers): boolean {
  return machines.length + warmImages.length + volumes.length === 0;
}

/** The dead versions that nothing stands on, nor may in a moment. */
export async function removableVersions(pool: StoragePool, host: Host): Promise<DeadVersion[]> {
  const dead = await deadVersions(await pool.volumeNames());
  if (dead.length === 0) return [];
  const isStarting = await isAnyStarting(host);
  const usersOf = await findUsers(host); // only now: what starts later gets the newest version
  const removable: DeadVersion[] = [];
  for (const version of dead) {
    if (version.isComplete && isStarting) continue;
    using volume = await pool.findVolume(imageVolume(version));
    const path = volume && await orNull(VIR_ERR.NO_STORAGE_VOL, volume.path());
    if (path === null || isUnused(usersOf(path))) removable.push(version);
  }
  return removable;
}

/** A machine that has a name but no disk yet may have found its template already. */
async function isAnyStarting({ connection, config }: Host): Promise<boolean> {
  using pool = await findActivePool(connection, config.pools.overlays);
  const volumes = await pool?.volumeNames() ?? [];
  const withDisk = new Set(ofKind(volumes, "overlay").map(({ name }) => name));
  return ofKind(volumes, "owner").some(({ name }) => !withDisk.has(name));
}

async function volumesWithBacking(
  pool: StoragePool,
): Promise<{ readonly volume: string; readonly backing: string }[]> {
  const found: { volume: string; backing: string }[] = [];
  for (const name of await pool.volumeNames()) {
    const kind = parseVolume(name)?.kind;
    if (kind !== undefined && kind !== "overlay" && kind !== "warm-disk") continue;
    using volume = await pool.findVolume(name);
    const xml = volume && await orNull(VIR_ERR.NO_STORAGE_VOL, volume.xml()); // just removed
    const backing = xml === null ? null : readVolumeXml(xml).backing;
    if (backing !== null) found.push({ volume: name, backing });
  }
  return found;
}

async function domainsWithFiles(
  connection: Connection,
): Promise<{ readonly name: string; readonly files: ReadonlySet<string> }[]> {
  using domains = await Domain.listAll(connection);
  const found: { name: string; files: ReadonlySet<string> }[] = [];
  for (const domain of domains) {
    const xml = await orNull(VIR_ERR.NO_DOMAIN, domain.xml()); // it may end at any moment
    if (xml !== null) found.push({ name: domain.name, files: filesOf(xml) });
  }
  return found;
}

/** The files of a domain's disks, and of what these stand on as far as its XML says. */
function filesOf(domainXml: string): ReadonlySet<string> {
  const files = new Set<string>();
  const collect = (disk: XmlElement): void => {
    const { file, dev } = find(disk, "source")?.attributes ?? {};
    const path = file ?? dev;
    if (path !== undefined) files.add(path);
    const below = find(disk, "backingStore");
    if (below !== undefined) collect(below);
  };
  childrenOf(find(rootOf(domainXml), "devices"), "disk").forEach(collect);
  return files;
}
