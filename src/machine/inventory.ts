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

/** The parts of a machine of ours that exist. */
export interface FoundMachine {
  readonly name: string;
  /** Whether it has a domain that is ours. */
  hasDomain: boolean;
  readonly volumes: { readonly pool: string; readonly name: string }[];
  hasFilter: boolean;
  /** Whether the directory for keys of machines by hand has its key. */
  hasKey: boolean;
}

/** All machines of which anything is left. With `refresh`, libvirt first looks for new files in the pools. */
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
          `Could not refresh the storage pool "${poolName}": ${error.message}`,
        );
      });
    }
    for (const { name, volumes } of machinesIn(poolName, await pool.volumeNames())) {
      machineOf(name).volumes.push(...volumes);
    }
  }
  const prefix = filterName("");
  for (const { name: filter } of await NetworkFilter.list(connection) ?? []) {
    const name = filter.startsWith(prefix) ? filter.slice(prefix.length) : "";
    if (isMachineName(name)) machineOf(name).hasFilter = true;
  }
  for (const name of await namesOfKeyFiles(directories.keys)) {
    if (isMachineName(name)) machineOf(name).hasKey = true;
  }
  return [...machines.values()].sort((a, b) => a.name < b.name ? -1 : 1);
}

/** Our machines that have these volumes. */
export function machinesOf(volumes: readonly string[]): Map<string, string[]> {
  const ours = volumes.filter((volume) => isMachineName(machineOfVolume(volume) ?? ""));
  return Map.groupBy(ours, (volume) => machineOfVolume(volume) ?? "");
}

/** As {@linkcode machinesOf}, for volumes of this pool. */
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
