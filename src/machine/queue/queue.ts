// SPDX-License-Identifier: GPL-2.0-or-later
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { hostMark, processMark } from "../process.ts";
import { ofKind, volumeName } from "../storage/volume_names.ts";
import { createRawVolume, removeVolume } from "../storage/volumes.ts";
import { shortHash } from "../../sha256.ts";
import { sleep } from "../../wait.ts";

/** An empty volume that stands in a queue by its name alone. */
export interface Queued {
  /** The volume's name. */
  readonly volume: string;
  /** Who has a smaller one came first: the time in milliseconds, or a little more. */
  readonly number: number;
}

/** An entry, with the names of the pool's volumes as they were just after it came. */
export interface Entered<T> {
  readonly entry: T;
  readonly volumes: readonly string[];
}

/** These, the first first. */
export function inOrder<T extends Queued>(queued: readonly T[]): T[] {
  return queued.toSorted((a, b) => a.number - b.number || (a.volume < b.volume ? -1 : 1));
}

/**
 * Makes such a volume at the end of a queue. `last` finds the last of the queue among all volumes.
 * Whoever has a greater number has seen this one when it looks who is ahead: a greater one that is there
 * already may have looked before, so this one is given back and made anew behind it.
 */
export async function enqueue<T extends Queued>(
  pool: StoragePool,
  { nameOf, last, signal }: {
    readonly nameOf: (number: number) => string;
    readonly last: (volumes: readonly string[]) => Promise<T | undefined>;
    readonly signal: AbortSignal;
  },
): Promise<Entered<T>> {
  let greatest = 0;
  for (let attempt = 0;; attempt++) {
    signal.throwIfAborted();
    const volume = nameOf(Math.max(Date.now(), greatest + 1));
    {
      using _ = await createRawVolume(pool, volume, 0);
    }
    const volumes = await pool.volumeNames();
    const found = await last(volumes);
    if (found?.volume === volume) return { entry: found, volumes };
    await removeVolume(pool, volume);
    greatest = found?.number ?? 0;
    await sleep(Math.random() * 2 ** Math.min(attempt, 8), signal); // many may have come at once
  }
}

/**
 * A machine that waits to start, or is about to: an empty volume from before its start until its
 * domain runs. Its name says all, so one list of the pool's volumes tells who is there and who came
 * first.
 */
export interface QueueEntry extends Queued {
  readonly machine: string;
  readonly memoryMib: number;
  /** The process of prepare, as `PID-START-BOOT`, and where it is, see hostMark; empty if unknown. */
  readonly process: string;
  readonly host: string;
}

/** From when a machine may start, making its disks takes seconds at most. */
const MARGIN_SECONDS = 600;

/** How long an entry counts, whatever became of its prepare. */
export function longestQueueSeconds({ queueSeconds }: { readonly queueSeconds: number }): number {
  return queueSeconds + MARGIN_SECONDS;
}

const UNKNOWN = "0-0-00000000";

/** The entries among these volumes, the first first. */
export function entriesIn(volumes: readonly string[]): QueueEntry[] {
  const entries = ofKind(volumes, "queue").map(({ volume, name: machine, fields }) => {
    const [number, memoryMib, process, host] = fields;
    return { volume, machine, number: Number(number), memoryMib: Number(memoryMib), process, host };
  });
  return inOrder(entries);
}

/**
 * Whether the entry's prepare may still go on: it has not taken longer than any does, and its process
 * runs. Of another host only the time is known.
 */
export async function isLiveEntry(
  { number, process, host }: QueueEntry,
  { longestSeconds }: { readonly longestSeconds: number },
): Promise<boolean> {
  if (Math.abs(Date.now() - number) > longestSeconds * 1000) return false;
  if (host === "" || host !== await hostMark()) return true;
  return processOf(Number.parseInt(process)) === process;
}

/** The process as it stands in a volume's name, or null if there is none. */
function processOf(pid: number): string | null {
  const [number, start, boot] = processMark(pid)?.split(" ") ?? [];
  return number === undefined ? null : `${number}-${start}-${boot?.slice(0, 8)}`;
}

/** How long entries count, and when to stop. */
export interface QueueLimits {
  readonly longestSeconds: number;
  readonly signal: AbortSignal;
}

/** Joins the queue at its end. */
export async function enterQueue(
  pool: StoragePool,
  machine: string,
  { memoryMib, longestSeconds, signal }: QueueLimits & { readonly memoryMib: number },
): Promise<Entered<QueueEntry>> {
  const process = processOf(Deno.pid) ?? UNKNOWN;
  const host = process === UNKNOWN ? "" : await hostMark();
  return await enqueue(pool, {
    nameOf: (number) => volumeName(machine, "queue", number, memoryMib, process, host),
    last: async (volumes) => (await liveEntries(pool, volumes, { longestSeconds })).at(-1),
    signal,
  });
}

/** Gives the entry up: once the domain runs, that counts instead. */
export async function leaveQueue(pool: StoragePool, { volume }: QueueEntry): Promise<void> {
  await removeVolume(pool, volume);
}

/**
 * The entries among these volumes that count, the first first. Ends those of prepares that were
 * killed, which count this once: libvirt may be about to start their domains.
 */
export async function liveEntries(
  pool: StoragePool,
  volumes: readonly string[],
  limits: Pick<QueueLimits, "longestSeconds">,
): Promise<QueueEntry[]> {
  const counting: QueueEntry[] = [];
  for (const entry of entriesIn(volumes)) {
    if (
      await isLiveEntry(entry, limits) || await removeVolume(pool, entry.volume).catch(() => false)
    ) counting.push(entry);
  }
  return counting;
}

/**
 * A machine among those of its project: an empty volume from before the machine waits for others of the
 * project until cleanup. Its name says all, so one list of the pool's volumes tells how many machines the
 * project has, and who came first.
 */
export interface ProjectEntry extends Queued {
  readonly machine: string;
  /** A hash of the project's path. */
  readonly project: string;
}

/** Joins the queue of the project of this path. */
export async function enterProject(
  pool: StoragePool,
  machine: string,
  { project: path, signal }: { readonly project: string; readonly signal: AbortSignal },
): Promise<Entered<ProjectEntry>> {
  const project = await shortHash(`libvirt-gci project ${path}`);
  return await enqueue(pool, {
    nameOf: (number) => volumeName(machine, "project", number, project),
    last: (volumes) => Promise.resolve(entriesOf(project, volumes).at(-1)),
    signal,
  });
}

/** Those of the project that came before; null if the entry is not there any more. */
export function entriesBefore(
  { volume, project }: ProjectEntry,
  volumes: readonly string[],
): ProjectEntry[] | null {
  const entries = entriesOf(project, volumes);
  const at = entries.findIndex((entry) => entry.volume === volume);
  return at < 0 ? null : entries.slice(0, at);
}

function entriesOf(project: string, volumes: readonly string[]): ProjectEntry[] {
  const entries = ofKind(volumes, "project").map(({ volume, name: machine, fields }) => {
    const [number, project] = fields;
    return { volume, machine, number: Number(number), project };
  });
  return inOrder(entries.filter((entry) => entry.project === project));
}
