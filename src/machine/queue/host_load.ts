// SPDX-License-Identifier: GPL-2.0-or-later
import { fileSystemSpace, readProc } from "../../../ffi/proc.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { type DomainMemory, nodeMemory } from "../../libvirt/memory_stats.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { rootOf, textAt } from "../../read_xml.ts";

/** How much there is of something, and how much of it is to be had. */
export interface Amount {
  readonly total: number;
  readonly available: number;
}

/**
 * The host's memory in MiB. What domains were promised and have not touched yet is not available;
 * what the kernel would give back at once, such as its page cache, is. Null where the driver does
 * not say.
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

/** The kernel's own estimate in MiB, which knows that shared memory is no cache. */
function readMemAvailable(): number | null {
  const kib = /^MemAvailable:\s+(\d+) kB$/m.exec(readProc("meminfo") ?? "")?.[1];
  return kib === undefined ? null : Number(kib) / 1024;
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((sum, number) => sum + number, 0);
}

/**
 * The space of a pool in bytes, as it is now where the hypervisor is on this host, and else as
 * libvirt saw it last: it does not see by itself how files grow.
 */
export async function poolSpace(connection: Connection, pool: StoragePool): Promise<Amount> {
  const root = rootOf(await pool.xml());
  const path = textAt(root, "target", "path");
  const now = connection.isLocal && path !== null ? fileSystemSpace(path) : null;
  const read = (name: string): number => Number(textAt(root, name) ?? Infinity);
  return now ?? { total: read("capacity"), available: read("available") };
}
