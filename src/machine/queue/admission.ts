// SPDX-License-Identifier: GPL-2.0-or-later
import type { Config } from "../../settings/load.ts";
import { explain, SystemFailure } from "../../errors.ts";
import { domainMemory } from "../../libvirt/memory_stats.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { findShortage, type HostLoad, isNext, type Shortage } from "./shortage.ts";
import { hostMemory, poolSpace } from "./host_load.ts";
import { waitingIn } from "../standby/waiting.ts";
import {
  type EnteredQueue,
  enterQueue,
  leaveQueue,
  liveEntries,
  longestQueueSeconds,
  type QueueEntry,
} from "./queue_entry.ts";
import { volumeName } from "../storage/volumes.ts";
import { NotYet, waitFor } from "../../wait.ts";
import type { CleanupStage } from "../remove.ts";
import { removeOneUnneeded } from "../unneeded.ts";
import { type FoundMachine, machinesIn, machinesOf } from "../inventory.ts";
import type { Stage } from "../context.ts";

/** How rarely a machine that waits looks around. */
export const LONGEST_PAUSE_MS = 1000;
/** How rarely it asks about each of the others whether anybody needs it. */
const ASKING_MS = 10_000;

const ADVICE = "See what runs: libvirt-gci list; max_machines, reserve_memory_mib and " +
  "reserve_disk_gib in the settings say how much may run at once, and admission_seconds how long " +
  'a machine waits for that; GitLab Runner\'s "concurrent" says how many jobs it takes';

type AdmissionStage = CleanupStage & Pick<Stage, "signal" | "progress" | "warn">;

/** That a machine may start. */
export interface Admission {
  /** It counts until it is ended; null if there is no limit. */
  readonly turn: QueueEntry | null;
  readonly hasWaited: boolean;
}

/** A machine that is to start. */
interface Starting {
  readonly pool: StoragePool;
  readonly memoryMib: number;
}

/** How a job's machine is to start. */
interface Waiting<T> extends Starting {
  /** Gives what makes the machine needless; null if there is none now. */
  readonly instead?: () => Promise<T | null>;
  /** How long it has waited before, which counts too. */
  readonly waitedSeconds?: number;
}

/**
 * Waits until the machine and all that came before it fit into what the settings let machines take, or
 * until `instead` gives what makes it needless. Throws SystemFailure when the time is over, or at once if
 * the machine can never fit.
 */
export async function waitForRoom<T extends object = never>(
  machine: string,
  { pool, memoryMib, instead, waitedSeconds = 0 }: Waiting<T>,
  stage: AdmissionStage,
): Promise<Admission | T> {
  const { config, signal, log, progress } = stage;
  if (!isLimited(config)) return { turn: null, hasWaited: false };
  const limits = { memoryMib, longestSeconds: longestQueueSeconds(config), signal };
  let told = "";
  let nextAsking = 0;
  let taken: EnteredQueue | null = await enterQueue(pool, machine, limits);
  let { turn } = taken;
  const probe = async (): Promise<Admission | T | NotYet> => {
    // The volumes first: a turn that ends between these calls has a domain that is seen.
    const volumes = taken?.volumes ?? await pool.volumeNames();
    taken = null;
    const load = await lookAround(pool, { turn, volumes }, stage);
    if (load === null) {
      taken = await enterQueue(pool, machine, limits); // somebody took us for dead
      turn = taken.turn;
      return new NotYet("its turn was lost");
    }
    const shortage = findShortage(load, config);
    if (shortage === null) return { turn, hasWaited: told !== "" };
    if (shortage.isHopeless) throw hopeless(machine, shortage);
    const other = await instead?.() ?? null;
    if (other !== null) {
      await leaveQueue(pool, turn);
      return other;
    }
    if (performance.now() >= nextAsking) {
      if (await removeOneUnneeded(othersWithDisk(machine, pool, volumes), stage)) {
        return new NotYet("a machine that nobody needs any more is removed");
      }
      nextAsking = performance.now() + ASKING_MS;
    }
    if (isNext(load, config) && await makeRoom(pool, volumes, stage)) {
      return new NotYet("a machine that waited for a job is removed");
    }
    const reason = inWords(shortage);
    if (told !== shortage.what + shortage.ahead) log(`Waiting for ${reason}`);
    told = shortage.what + shortage.ahead;
    return new NotYet(`it waits for ${reason}`);
  };
  return await waitFor({
    goal: "get its turn",
    awaited: "its turn",
    probe,
    advice: ADVICE,
    fault: "room",
  }, {
    ...{ timeoutSeconds: config.admissionSeconds, waitedSeconds, signal, log, progress },
    longestPauseMs: LONGEST_PAUSE_MS,
  });
}

/**
 * As {@linkcode waitForRoom}, for a machine that no job needs yet: it does not wait. Resolves to null if it
 * would have to.
 */
export async function enterIfRoom(
  machine: string,
  { pool, memoryMib }: Starting,
  stage: Pick<Stage, "connection" | "config" | "signal">,
): Promise<Admission | null> {
  const { config, signal } = stage;
  if (!isLimited(config)) return { turn: null, hasWaited: false };
  const limits = { memoryMib, longestSeconds: longestQueueSeconds(config), signal };
  const { turn, volumes } = await enterQueue(pool, machine, limits);
  const load = await lookAround(pool, { turn, volumes }, stage);
  if (load !== null && findShortage(load, config) === null) return { turn, hasWaited: false };
  await leaveQueue(pool, turn);
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

/** Removes a machine that no job has yet. Resolves to whether there was one. */
async function makeRoom(
  pool: StoragePool,
  volumes: readonly string[],
  stage: AdmissionStage,
): Promise<boolean> {
  const waiting = waitingIn(volumes);
  if (waiting.length === 0) return false;
  const { removeStandby } = await import("../standby/fill.ts"); // where nobody lets machines wait, not needed
  for (const standby of waiting) {
    try {
      if (await removeStandby(standby, pool, stage)) return true;
    } catch (error) {
      stage.warn(`Could not remove the waiting machine "${standby.name}": ${explain(error)}`);
    }
  }
  return false;
}

function isLimited(
  { maxMachines, overcommitMemory, reserveDiskGib }: Config,
): boolean {
  return maxMachines !== null || !overcommitMemory || reserveDiskGib > 0;
}

/** Such as `8192 MiB of memory, 3 jobs ahead (2100 MiB are free)`. */
export function inWords({ what, ahead, figures }: Omit<Shortage, "isHopeless">): string {
  return `${what}${ahead && `, ${ahead}`} (${figures})`;
}

function hopeless(machine: string, { what, figures }: Shortage): SystemFailure {
  return new SystemFailure({
    what: `The machine "${machine}" would wait forever for ${what}: ${figures}`,
    advice: ADVICE,
    fault: "room",
  });
}

/** How the host is, by the pool's volumes just before; null if the turn is not there any more. */
async function lookAround(
  pool: StoragePool,
  { turn, volumes }: { readonly turn: QueueEntry; readonly volumes: readonly string[] },
  { connection, config }: Pick<Stage, "connection" | "config">,
): Promise<HostLoad | null> {
  const turns = await liveEntries(pool, volumes, { longestSeconds: longestQueueSeconds(config) });
  const place = turns.findIndex(({ volume }) => volume === turn.volume);
  if (place < 0) return null;
  const domains = await domainMemory(connection);
  const machines = machinesOf(volumes);
  return {
    turn,
    ahead: turns.slice(0, place),
    running: new Set(domains.map(({ name }) => name).filter((name) => machines.has(name))),
    hasOthers: [...machines].some(([name, all]) => all.includes(volumeName(name, "overlay"))),
    memory: config.overcommitMemory ? null : await hostMemory(connection, domains),
    space: config.reserveDiskGib === 0 ? null : await poolSpace(connection, pool),
  };
}
