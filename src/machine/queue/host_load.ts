// SPDX-License-Identifier: GPL-2.0-or-later
import { fileSystemSpace, readProc } from "../../../ffi/proc.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { type DomainMemory, nodeMemory } from "../../libvirt/memory_stats.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { rootOf, textAt } from "../../read_xml.ts";

/** A resource of the host. */
export interface Amount {
  readonly total: number;
  readonly available: number;
}

/**
 * The host's memory in MiB; null if the driver does not say. Memory that domains have not touched yet
 * is not available to others. The kernel's page cache is.
 */
export async function hostMemory(
  connection: Connection,
  domains: readonly DomainMemory[],
): Promise<Amount | null> {
  const mib = await nodeMemory(connection);
  const total = mib?.get("total");
  if (!mib || total === undefined) return null;
  const reclaimable = ["free", "buffers", "cached"].map((name) => mib.get(name) ?? 0);
  const free = connection.isLocal ? readMemAvailable() : null;
  const promised = domains.map(({ maximumMib, residentMib }) =>
    Math.max(0, maximumMib - residentMib)
  );
  return { total, available: (free ?? sum(reclaimable)) - sum(promised) };
}

/** The kernel's estimate in MiB, which does not take shared memory for a cache. */
function readMemAvailable(): number | null {
  const kib = /^MemAvailable:\s+(\d+) kB$/m.exec(readProc("meminfo") ?? "")?.[1];
  return kib === undefined ? null : Number(kib) / 1024;
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((sum, number) => sum + number, 0);
}

/**
 * The space of a pool in bytes. libvirt does not notice how files grow, so if the hypervisor is on this
 * host, the kernel is asked.
 */
export async function poolSpace(connection: Connection, pool: StoragePool): Promise<Amount> {
  const root = rootOf(await pool.xml());
  const path = textAt(root, "target", "path");
  const now = connection.isLocal && path !== null ? fileSystemSpace(path) : null;
  const read = (name: string): number => Number(textAt(root, name) ?? Infinity);
  return now ?? { total: read("capacity"), available: read("available") };
}
