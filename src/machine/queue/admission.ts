// SPDX-License-Identifier: GPL-2.0-or-later
import { explain, SystemFailure } from "../../errors.ts";
import { domainMemory } from "../../libvirt/memory_stats.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Context, Host } from "../context.ts";
import { type FoundMachine, machinesIn, machinesOf } from "../inventory.ts";
import { hostMemory, poolSpace } from "./host_load.ts";
import {
  type Entered,
  enterQueue,
  leaveQueue,
  liveEntries,
  longestQueueSeconds,
  type QueueEntry,
} from "./queue.ts";
import {
  findShortage,
  type HostLoad,
  isNext,
  type QueueSettings,
  type Shortage,
} from "./shortage.ts";
import { removeStandby } from "../remove.ts";
import { waitingIn } from "../standby/waiting.ts";
import { volumeName } from "../storage/volume_names.ts";
import { removeOneUnneeded } from "../unneeded.ts";
import { NotYet, waitFor } from "../../wait.ts";

/** How rarely a machine that waits looks around. */
export const LONGEST_PAUSE_MS = 1000;
/** How rarely it asks about each of the others whether anybody needs it. */
const ASKING_MS = 10_000;

const ADVICE =
  'See what runs: libvirt-gci list; "host.max_machines", "host.reserve_memory_mib" and ' +
  '"host.reserve_disk_gib" in the settings say how much may run at once, and "host.queue_seconds" how long ' +
  'a machine waits for that; GitLab Runner\'s "concurrent" says how many jobs it takes';

/** Where a machine stands that may start. */
export interface Place {
  readonly hasWaited: boolean;
  /** Leaves the queue: until then, the machine counts there. */
  readonly leave: () => Promise<void>;
}

const WITHOUT_LIMIT: Place = { hasWaited: false, leave: () => Promise.resolve() };

function placeOf(pool: StoragePool, entry: QueueEntry, hasWaited: boolean): Place {
  return { hasWaited, leave: () => leaveQueue(pool, entry) };
}

/**
 * Waits until the machine and all that came before it fit into what the settings let machines take, or
 * until `instead` gives what makes it needless. What it has waited before counts too. Throws SystemFailure
 * when the time is over, or at once if the machine can never fit.
 */
export async function waitForRoom<T extends object = never>(
  machine: string,
  { pool, memoryMib, instead, waitedSeconds = 0 }: {
    readonly pool: StoragePool;
    readonly memoryMib: number;
    readonly instead?: () => Promise<T | null>;
    readonly waitedSeconds?: number;
  },
  context: Context,
): Promise<Place | T> {
  const { host, report: { log, progress }, signal } = context;
  const { host: room } = host.config;
  if (!isLimited(room)) return WITHOUT_LIMIT;
  const timeoutSeconds = room.queueSeconds;
  const limits = { memoryMib, longestSeconds: longestQueueSeconds(room), signal };
  let told = "";
  const makeRoom = roomMaker(machine, pool, context);
  let entered: Entered<QueueEntry> | null = await enterQueue(pool, machine, limits);
  let { entry } = entered;
  const probe = async (): Promise<Place | T | NotYet> => {
    // The volumes first: an entry that ends between these calls has a domain that is seen.
    const volumes = entered?.volumes ?? await pool.volumeNames();
    const load = await lookAround(pool, { entry, volumes }, host);
    entered = null;
    if (load === null) {
      entered = await enterQueue(pool, machine, limits); // somebody took us for dead
      entry = entered.entry;
      return new NotYet("its turn was lost");
    }
    const shortage = findShortage(load, room);
    if (shortage === null) return placeOf(pool, entry, told !== "");
    if (shortage.isHopeless) throw hopeless(machine, shortage);
    const other = await instead?.() ?? null;
    if (other !== null) {
      await leaveQueue(pool, entry);
      return other;
    }
    const removed = await makeRoom(volumes, isNext(load, room));
    if (removed !== null) return new NotYet(removed);
    const reason = inWords(shortage);
    if (told !== shortage.what + shortage.ahead) log(`Waiting for ${reason}`);
    told = shortage.what + shortage.ahead;
    return new NotYet(`it waits for ${reason}`);
  };
  return await waitFor(
    { goal: "get its turn", awaited: "its turn", probe, advice: ADVICE, fault: "room" },
    { timeoutSeconds, waitedSeconds, signal, log, progress, longestPauseMs: LONGEST_PAUSE_MS },
  );
}

/**
 * As {@linkcode waitForRoom}, for a machine that no job needs yet: it does not wait. Resolves to null if it
 * would have to.
 */
export async function enterIfRoom(
  machine: string,
  { pool, memoryMib }: { readonly pool: StoragePool; readonly memoryMib: number },
  { host, signal }: Context,
): Promise<Place | null> {
  const { config } = host;
  if (!isLimited(config.host)) return WITHOUT_LIMIT;
  const limits = { memoryMib, longestSeconds: longestQueueSeconds(config.host), signal };
  const { entry, volumes } = await enterQueue(pool, machine, limits);
  const load = await lookAround(pool, { entry, volumes }, host);
  if (load !== null && findShortage(load, config.host) === null) return placeOf(pool, entry, false);
  await leaveQueue(pool, entry);
  return null;
}

/** The other machines that have a disk, by the pool's volumes. */
function othersWithDisk(
  machine: string,
  pool: StoragePool,
  volumes: readonly string[],
): Pick<FoundMachine, "name" | "volumes">[] {
  return machinesIn(pool.name, volumes).filter(({ name, volumes }) =>
    name !== machine && volumes.some((volume) => volume.name === volumeName(name, "overlay"))
  );
}

/**
 * What removes a machine in whose place the one that waits may start, one that no job has yet only for
 * who is next. It gets the pool's volumes, and gives what it removed, as the end of a sentence; null if
 * there is none now.
 */
function roomMaker(
  machine: string,
  pool: StoragePool,
  context: Context,
): (volumes: readonly string[], isNext: boolean) => Promise<string | null> {
  let nextAsking = 0;
  return async (volumes, isNext) => {
    if (performance.now() >= nextAsking) {
      if (await removeOneUnneeded(othersWithDisk(machine, pool, volumes), context)) {
        return "a machine that nobody needs any more is removed";
      }
      nextAsking = performance.now() + ASKING_MS;
    }
    return isNext && await removeOneStandby(pool, volumes, context)
      ? "a standby machine was removed"
      : null;
  };
}

/** Removes a machine that no job has yet. Resolves to whether there was one. */
async function removeOneStandby(
  pool: StoragePool,
  volumes: readonly string[],
  context: Context,
): Promise<boolean> {
  for (const standby of waitingIn(volumes)) {
    try {
      if (await removeStandby(standby, pool, context)) return true;
    } catch (error) {
      context.report.warn(`Cannot remove the standby machine "${standby.name}": ${explain(error)}`);
    }
  }
  return false;
}

function isLimited({ maxMachines, overcommitMemory, reserveDiskGib }: QueueSettings): boolean {
  return maxMachines !== null || !overcommitMemory || reserveDiskGib > 0;
}

/** Such as `8192 MiB of memory, 3 jobs ahead (2100 MiB are free)`. */
export function inWords({ what, ahead, figures }: Omit<Shortage, "isHopeless">): string {
  return `${what}${ahead && `, ${ahead}`} (${figures})`;
}

function hopeless(machine: string, { what, figures }: Shortage): SystemFailure {
  return new SystemFailure({
    what: `The machine "${machine}" can never start, because the host lacks ${what}: ${figures}`,
    advice: ADVICE,
    fault: "room",
  });
}

/** How the host is, by the pool's volumes just before; null if the entry is not there any more. */
async function lookAround(
  pool: StoragePool,
  { entry, volumes }: { readonly entry: QueueEntry; readonly volumes: readonly string[] },
  { connection, config }: Host,
): Promise<HostLoad | null> {
  const entries = await liveEntries(pool, volumes, {
    longestSeconds: longestQueueSeconds(config.host),
  });
  const at = entries.findIndex(({ volume }) => volume === entry.volume);
  if (at < 0) return null;
  const domains = await domainMemory(connection);
  const machines = machinesOf(volumes);
  return {
    entry,
    ahead: entries.slice(0, at),
    running: new Set(domains.map(({ name }) => name).filter((name) => machines.has(name))),
    hasOthers: [...machines].some(([name, all]) => all.includes(volumeName(name, "overlay"))),
    memory: config.host.overcommitMemory ? null : await hostMemory(connection, domains),
    space: config.host.reserveDiskGib === 0 ? null : await poolSpace(connection, pool),
  };
}
