// SPDX-License-Identifier: GPL-2.0-or-later
import { explain, SystemFailure } from "../../errors.ts";
import { domainMemory } from "../../libvirt/memory_stats.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Context, Host } from "../context.ts";
import { machinesIn, machinesOf } from "../inventory.ts";
import {
  findShortage,
  type HostLoad,
  hostMemory,
  isNext,
  poolSpace,
  type QueueSettings,
  type Shortage,
} from "./host_load.ts";
import {
  type Entered,
  enterQueue,
  leaveQueue,
  liveEntries,
  longestQueueSeconds,
  type QueueEntry,
} from "./queue.ts";
import { removeStandby } from "../remove.ts";
import { waitingIn } from "../standby/waiting.ts";
import { volumeName } from "../storage/volume_names.ts";
import { removeOneUnneeded } from "../unneeded.ts";
import { NotYet, waitFor } from "../../wait.ts";

/** The longest pause of a waiting machine between two looks at the host. */
export const LONGEST_PAUSE_MS = 1000;
/** The time between two searches for machines that are not needed. */
const ASKING_MS = 10_000;

const ADVICE =
  'List what runs: libvirt-gci list; raise "host.max_machines" or "host.queue_seconds", lower ' +
  '"host.reserve_memory_mib" or "host.reserve_disk_gib", or lower "concurrent" in ' +
  "GitLab Runner's settings";

/** A machine may start. */
export interface Admission {
  readonly hasWaited: boolean;
  /** Leaves the queue. Until then, the machine counts there. */
  readonly leave: () => Promise<void>;
}

const WITHOUT_LIMIT: Admission = { hasWaited: false, leave: () => Promise.resolve() };

function admission(pool: StoragePool, entry: QueueEntry, hasWaited: boolean): Admission {
  return { hasWaited, leave: () => leaveQueue(pool, entry) };
}

/**
 * Waits until there is room on the host for the machine and all ahead of it, or until `instead` gives
 * another. `waitedSeconds` count towards the timeout. Throws SystemFailure at the timeout, or at once if
 * the host is too small for the machine.
 */
export async function waitForAdmission<T extends object = never>(
  machine: string,
  { pool, memoryMib, instead, waitedSeconds = 0 }: {
    readonly pool: StoragePool;
    readonly memoryMib: number;
    readonly instead?: () => Promise<T | null>;
    readonly waitedSeconds?: number;
  },
  context: Context,
): Promise<Admission | T> {
  const { host, report: { log, progress }, signal } = context;
  const { host: room } = host.config;
  if (!isLimited(room)) return WITHOUT_LIMIT;
  const timeoutSeconds = room.queueSeconds;
  const limits = { memoryMib, longestSeconds: longestQueueSeconds(room), signal };
  let told = "";
  const makeRoom = roomMaker(machine, pool, context);
  let entered: Entered<QueueEntry> | null = await enterQueue(pool, machine, limits);
  let { entry } = entered;
  const probe = async (): Promise<Admission | T | NotYet> => {
    // Volumes first: if an entry ends between these calls, its domain is seen.
    const volumes = entered?.volumes ?? await pool.volumeNames();
    const load = await lookAround(pool, { entry, volumes }, host);
    entered = null;
    if (load === null) {
      entered = await enterQueue(pool, machine, limits); // another prepare took this one for dead
      entry = entered.entry;
      return new NotYet("its queue entry was lost");
    }
    const shortage = findShortage(load, room);
    if (shortage === null) return admission(pool, entry, told !== "");
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
    { goal: "leave the queue", awaited: "room", probe, advice: ADVICE, fault: "room" },
    { timeoutSeconds, waitedSeconds, signal, log, progress, longestPauseMs: LONGEST_PAUSE_MS },
  );
}

/** As {@linkcode waitForAdmission}, but without waiting: null if there is no room now. */
export async function tryAdmission(
  machine: string,
  { pool, memoryMib }: { readonly pool: StoragePool; readonly memoryMib: number },
  { host, signal }: Context,
): Promise<Admission | null> {
  const { config } = host;
  if (!isLimited(config.host)) return WITHOUT_LIMIT;
  const limits = { memoryMib, longestSeconds: longestQueueSeconds(config.host), signal };
  const { entry, volumes } = await enterQueue(pool, machine, limits);
  const load = await lookAround(pool, { entry, volumes }, host);
  if (load !== null && findShortage(load, config.host) === null) {
    return admission(pool, entry, false);
  }
  await leaveQueue(pool, entry);
  return null;
}

/**
 * Gives a function that makes room: it removes a machine that is not needed or, if this machine is the
 * next to start, a standby machine. That function returns what it did, or null.
 */
function roomMaker(
  machine: string,
  pool: StoragePool,
  context: Context,
): (volumes: readonly string[], isNext: boolean) => Promise<string | null> {
  let nextAsking = 0;
  return async (volumes, isNext) => {
    if (performance.now() >= nextAsking) {
      const others = machinesIn(pool.name, volumes).filter(({ name, volumes }) =>
        name !== machine && volumes.some((volume) => volume.name === volumeName(name, "overlay"))
      );
      if (await removeOneUnneeded(others, context)) {
        return "a machine no longer needed was removed";
      }
      nextAsking = performance.now() + ASKING_MS;
    }
    return isNext && await removeOneStandby(pool, volumes, context)
      ? "a standby machine was removed"
      : null;
  };
}

/** Whether it removed a standby machine. */
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

/** The host's load, given the pool's volumes just before; null if the entry is gone. */
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
