// SPDX-License-Identifier: GPL-2.0-or-later
import { namesOfKeyFiles } from "../guest/key_file.ts";
import { isMachineName } from "../job/job.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Domain } from "../libvirt/domain.ts";
import { isLibvirtError } from "../libvirt/error.ts";
import { NetworkFilter } from "../libvirt/network_filter.ts";
import type { Context } from "./context.ts";
import { findMetadata } from "./metadata.ts";
import { filterName } from "./network/filter.ts";
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
