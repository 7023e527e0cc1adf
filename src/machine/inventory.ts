// SPDX-License-Identifier: GPL-2.0-or-later
import { namesOfKeyFiles } from "../guest/key_file.ts";
import { isMachineName } from "../job/job.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Domain } from "../libvirt/domain.ts";
import { isLibvirtError } from "../libvirt/error.ts";
import { NetworkFilter } from "../libvirt/network_filter.ts";
import { StoragePool } from "../libvirt/storage_pool.ts";
import type { Context, Host } from "./context.ts";
import { findMetadata, type MachineMetadata } from "./metadata.ts";
import { filterName } from "./network/filter.ts";
import { findOwner, isFresh, type Owner, type OwnerFound, whyUnneeded } from "./owner.ts";
import { assignmentsIn, isStandbyName, waitingIn } from "./standby/waiting.ts";
import { findActivePool, refreshPool } from "./storage/pools.ts";
import { machineOfVolume } from "./storage/volume_names.ts";

/** What is there of a machine of ours, whether or not it runs. */
export interface FoundMachine {
  readonly name: string;
  /** Whether it has a domain that is ours. */
  hasDomain: boolean;
  readonly volumes: { readonly pool: string; readonly name: string }[];
  hasFilter: boolean;
  /** Whether its key is in the directory for keys of machines by hand. */
  hasKey: boolean;
}

/**
 * All machines of which anything is left: a domain, volumes in the pools of the settings, a network
 * filter or a key. With `refresh`, libvirt looks into the pools again, for files that it lost sight
 * of.
 */
export async function findMachines(
  { host: { connection, config, directories }, report }: Context,
  { refresh }: { readonly refresh: boolean },
): Promise<FoundMachine[]> {
  const machines = new Map<string, FoundMachine>();
  const machineOf = (name: string): FoundMachine => {
    const none = { name, hasDomain: false, volumes: [], hasFilter: false, hasKey: false };
    const machine = machines.get(name) ?? none;
    machines.set(name, machine);
    return machine;
  };
  for (const name of await ourDomains(connection)) machineOf(name).hasDomain = true;
  for (const poolName of [config.pools.overlays, config.pools.templates]) {
    using pool = await findActivePool(connection, poolName);
    if (pool === null) continue;
    if (refresh) {
      await refreshPool(pool).catch((error) => {
        if (!isLibvirtError(error)) throw error;
        report.warn(
          `Could not look for new files in the storage pool "${poolName}": ${error.message}`,
        );
      });
    }
    for (const { name, volumes } of machinesIn(poolName, await pool.volumeNames())) {
      machineOf(name).volumes.push(...volumes);
    }
  }
  const filters = await NetworkFilter.list(connection) ?? [];
  for (const machine of machinesWithFilter(filters.map(({ name }) => name))) {
    machineOf(machine).hasFilter = true;
  }
  for (const name of await namesOfKeyFiles(directories.keys)) {
    if (isMachineName(name)) machineOf(name).hasKey = true;
  }
  return [...machines.values()].sort((a, b) => a.name < b.name ? -1 : 1);
}

/** The machines of these volumes; what has another name is not ours. */
export function machinesOf(volumes: readonly string[]): Map<string, string[]> {
  const ours = volumes.filter((volume) => isMachineName(machineOfVolume(volume) ?? ""));
  return Map.groupBy(ours, (volume) => machineOfVolume(volume) ?? "");
}

/** As {@linkcode machinesOf}, of volumes in this pool. */
export function machinesIn(
  pool: string,
  volumes: readonly string[],
): Pick<FoundMachine, "name" | "volumes">[] {
  return [...machinesOf(volumes)].map(([name, ofMachine]) => ({
    name,
    volumes: ofMachine.map((volume) => ({ pool, name: volume })),
  }));
}

/** What is known now of who needs a machine. */
export interface Need {
  /** Null where the domain is not ours, or there is none. */
  readonly metadata: MachineMetadata | null;
  /** Null where nothing says it. */
  readonly owner: Owner | null;
  /** Why nobody needs it, as the end of a sentence; null while somebody does, or may. */
  readonly why: string | null;
}

/** Asks libvirt who needs the machine, as it is at this moment. */
export async function lookupNeed(
  { name, volumes }: Pick<FoundMachine, "name" | "volumes">,
  host: Host,
): Promise<Need> {
  const { connection, config } = host;
  using domain = await Domain.find(connection, name);
  const metadata = domain && await findMetadata(domain);
  if (metadata !== null) {
    const why = await whyUnneeded(metadata);
    // Asked only then: whoever is gone has said before that it waits, or who takes it.
    const mayBeAwaited = why !== null && isStandbyName(name) && metadata.machine === "";
    const isNeeded = mayBeAwaited && await isAwaited(name, host);
    return { metadata, owner: metadata, why: isNeeded ? null : why };
  }
  const taken = await metadataOfAssigned(name, volumes, connection);
  if (taken !== null) return { metadata, owner: taken, why: await whyUnneeded(taken) };
  const found = await findOwnerIn(
    [config.pools.overlays, config.pools.templates],
    name,
    connection,
  );
  if (found === "unknown") return { metadata, owner: null, why: null };
  if (found === null) {
    const why = await isAnyFresh(volumes, connection) ? null : "nothing says whose it is";
    return { metadata, owner: null, why };
  }
  if ("why" in found) return { metadata, owner: null, why: found.why };
  return { metadata, owner: found, why: await whyUnneeded(found) };
}

/**
 * Whether a machine that no job has yet waits for one, or is about to be taken over by one that is
 * needed itself. Its metadata has to be read before.
 */
async function isAwaited(
  standby: string,
  { connection, config }: Host,
): Promise<boolean> {
  using pool = await findActivePool(connection, config.pools.overlays);
  const volumes = await pool?.volumeNames() ?? [];
  if (waitingIn(volumes).some(({ name }) => name === standby)) return true;
  for (const { machine } of assignmentsIn(volumes).filter((taken) => taken.standby === standby)) {
    const owner = pool && await findOwner(pool, machine);
    if (owner === "unknown") return true;
    if (owner !== null && !("why" in owner) && await whyUnneeded(owner) === null) return true;
  }
  return false;
}

/** The metadata of the machine that this one took over, by its volumes; null if there is none. */
async function metadataOfAssigned(
  machine: string,
  volumes: FoundMachine["volumes"],
  connection: Connection,
): Promise<MachineMetadata | null> {
  for (const { standby } of assignmentsIn(volumes.map(({ name }) => name))) {
    using domain = await Domain.find(connection, standby);
    const metadata = domain && await findMetadata(domain);
    if (metadata?.machine === machine) return metadata;
  }
  return null;
}

async function findOwnerIn(
  pools: readonly string[],
  machine: string,
  connection: Connection,
): Promise<OwnerFound | null> {
  for (const name of pools) {
    using pool = await findActivePool(connection, name);
    const found = pool && await findOwner(pool, machine);
    if (found !== null) return found;
  }
  return null;
}

async function isAnyFresh(
  volumes: FoundMachine["volumes"],
  connection: Connection,
): Promise<boolean> {
  for (const { pool: poolName, name } of volumes) {
    using pool = await StoragePool.find(connection, poolName);
    using volume = pool && await pool.findVolume(name);
    if (volume !== null && await isFresh(volume)) return true;
  }
  return false;
}

async function ourDomains(connection: Connection): Promise<string[]> {
  using domains = await Domain.listActive(connection);
  const names: string[] = [];
  for (const domain of domains) if (await findMetadata(domain) !== null) names.push(domain.name);
  return names;
}

function machinesWithFilter(filters: readonly string[]): string[] {
  const start = filterName("");
  return filters.filter((name) => name.startsWith(start)).map((name) => name.slice(start.length))
    .filter(isMachineName);
}

/** What there is of these machines together, such as `domain, 5 volumes, network filter, key`. */
export function partsOf(machines: readonly FoundMachine[]): string {
  const volumes = machines.flatMap((machine) => machine.volumes).length;
  return [
    ...(machines.some(({ hasDomain }) => hasDomain) ? ["domain"] : []),
    ...(volumes > 0 ? [`${volumes} volume${volumes === 1 ? "" : "s"}`] : []),
    ...(machines.some(({ hasFilter }) => hasFilter) ? ["network filter"] : []),
    ...(machines.some(({ hasKey }) => hasKey) ? ["key"] : []),
  ].join(", ");
}

/** Whether it is known by nothing that says whose it is, or could: no domain and no volume. */
export function isTrace({ hasDomain, volumes }: FoundMachine): boolean {
  return !hasDomain && volumes.length === 0;
}
