// SPDX-License-Identifier: GPL-2.0-or-later
import { fileSystemSpace, readProc } from "../../../ffi/proc.ts";
import { GIB, gib } from "../../bytes.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { type DomainMemory, nodeMemory } from "../../libvirt/memory_stats.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { QueueEntry } from "./queue.ts";
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

/** The settings of `host` that limit machines. */
export interface QueueSettings {
  readonly maxMachines: number | null;
  readonly overcommitMemory: boolean;
  readonly reserveMemoryMib: number;
  readonly reserveDiskGib: number;
}

/** The host as one prepare sees it. */
export interface HostLoad {
  readonly entry: Pick<QueueEntry, "machine" | "memoryMib">;
  /** The entries ahead of it. Their memory counts as used. */
  readonly ahead: readonly Pick<QueueEntry, "machine" | "memoryMib">[];
  /** Our running machines, of which one may still have an entry. */
  readonly running: ReadonlySet<string>;
  /** Whether another machine has a disk, whose space may become free. */
  readonly hasOthers: boolean;
  /** In MiB; null if unknown. */
  readonly memory: Amount | null;
  /** The overlay pool, in bytes; null if unknown. */
  readonly space: Amount | null;
}

/** What a machine waits for. */
export interface Shortage {
  /** Ends the sentence "Waiting for …". */
  readonly what: string;
  /** Such as `3 jobs ahead`, or empty. */
  readonly ahead: string;
  /** The present figures, which change all the time. */
  readonly figures: string;
  /** Whether waiting cannot help; `figures` then says why. */
  readonly isHopeless: boolean;
}

/** What the machine must wait for; null if it may start now. */
export function findShortage(load: HostLoad, limits: QueueSettings): Shortage | null {
  const starting = load.ahead.filter(({ machine }) => !load.running.has(machine));
  const shortage = shortageOfSpace(load, limits) ?? shortageOfMemory(load, starting, limits) ??
    shortageOfMachines(load, starting, limits);
  return shortage && { isHopeless: false, ahead: jobsAhead(starting.length), ...shortage };
}

/** Whether the machine is the next to start, since none ahead of it waits. */
export function isNext(load: HostLoad, limits: QueueSettings): boolean {
  return load.ahead.every((entry, at) =>
    load.running.has(entry.machine) ||
    findShortage({ ...load, entry, ahead: load.ahead.slice(0, at) }, limits) === null
  );
}

type Lack = Omit<Shortage, "ahead" | "isHopeless"> & Partial<Shortage>;

/** Such as `3 jobs ahead`; empty for none. */
export function jobsAhead(count: number): string {
  return count === 0 ? "" : `${count} job${count === 1 ? "" : "s"} ahead`;
}

function shortageOfSpace(
  { space, hasOthers }: HostLoad,
  { reserveDiskGib }: QueueSettings,
): Lack | null {
  if (space === null || space.available >= reserveDiskGib * GIB) return null;
  const figures = `${gib(space.available)} of ${gib(space.total)} GiB are free`;
  const what = `space in the overlay pool, where ${reserveDiskGib} GiB are reserved`;
  if (hasOthers && space.total >= reserveDiskGib * GIB) return { what, figures };
  return {
    what,
    figures: `${figures}, and no machine can free space`,
    isHopeless: true,
  };
}

function shortageOfMemory(
  { memory, entry: { memoryMib } }: HostLoad,
  starting: HostLoad["ahead"],
  { overcommitMemory, reserveMemoryMib }: QueueSettings,
): Lack | null {
  if (memory === null || overcommitMemory) return null;
  const what = `${memoryMib} MiB of memory`;
  if (memory.total - reserveMemoryMib < memoryMib) {
    const figures = `the host has ${Math.floor(memory.total)} MiB, of which ` +
      `${reserveMemoryMib} MiB are reserved`;
    return { what, figures, isHopeless: true };
  }
  const available = memory.available - reserveMemoryMib;
  const taken = starting.reduce((sum, entry) => sum + entry.memoryMib, 0);
  if (available - taken >= memoryMib) return null;
  return { what, figures: `${Math.max(0, Math.floor(available))} MiB are free` };
}

function shortageOfMachines(
  { running }: HostLoad,
  starting: HostLoad["ahead"],
  { maxMachines }: QueueSettings,
): Lack | null {
  if (maxMachines === null) return null;
  if (running.size + starting.length < maxMachines) return null;
  return {
    what: "a machine to end",
    figures: `${running.size} of ${maxMachines} machine${maxMachines === 1 ? "" : "s"} run`,
  };
}
