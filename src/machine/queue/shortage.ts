// SPDX-License-Identifier: GPL-2.0-or-later
import { GIB, gib } from "../../bytes.ts";
import type { Amount } from "./host_load.ts";
import type { QueueEntry } from "./queue.ts";

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
