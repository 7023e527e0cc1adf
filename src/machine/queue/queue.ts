// SPDX-License-Identifier: GPL-2.0-or-later
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { ownProcessInName, type ProcessInName, runsByName } from "../process.ts";
import { ofKind, volumeName } from "../storage/volume_names.ts";
import { createRawVolume, removeVolume } from "../storage/volumes.ts";
import { shortHash } from "../../sha256.ts";
import { sleep } from "../../wait.ts";

/**
 * A place in a queue: an empty volume of the overlay pool. Its name says everything, so one list of the
 * pool's volumes shows the whole queue.
 */
export interface Queued {
  readonly volume: string;
  readonly machine: string;
  /** The order: the time in milliseconds, or a little more. */
  readonly number: number;
}

/** An entry, and the pool's volumes just after it was created. */
export interface Entered<T> {
  readonly entry: T;
  readonly volumes: readonly string[];
}

/** From the first to the last. */
function inOrder<T extends Queued>(queued: readonly T[]): T[] {
  return queued.toSorted((a, b) => a.number - b.number || (a.volume < b.volume ? -1 : 1));
}

/**
 * Joins a queue at its end. `last` finds its last entry. An entry with a greater number that exists
 * already may have overlooked this one, so this one is then removed and created again behind it.
 */
async function enqueue<T extends Queued>(
  pool: StoragePool,
  nameOf: (number: number) => string,
  last: (volumes: readonly string[]) => Promise<T | undefined>,
  signal: AbortSignal,
): Promise<Entered<T>> {
  let greatest = 0;
  for (let attempt = 0;; attempt++) {
    signal.throwIfAborted();
    const volume = nameOf(Math.max(Date.now(), greatest + 1));
    (await createRawVolume(pool, volume, 0))[Symbol.dispose]();
    const volumes = await pool.volumeNames();
    const found = await last(volumes);
    if (found?.volume === volume) return { entry: found, volumes };
    await removeVolume(pool, volume);
    greatest = found?.number ?? 0;
    await sleep(Math.random() * 2 ** Math.min(attempt, 8), signal); // many may have come at once
  }
}

/**
 * A machine in the host's queue. admission.ts creates the entry before the machine starts, and removes
 * it once the domain runs, because the domain counts from then on. Other prepares read it to see who is
 * ahead, and how much memory those machines need. cleanup removes it with the machine's other volumes.
 * The entry of a killed prepare is removed by gc and by the next process that reads the queue.
 */
export interface QueueEntry extends Queued, ProcessInName {
  readonly memoryMib: number;
}

/** A machine needs seconds to start once it may. */
const MARGIN_SECONDS = 600;

/** How long an entry is valid at most. */
export function longestQueueSeconds({ queueSeconds }: { readonly queueSeconds: number }): number {
  return queueSeconds + MARGIN_SECONDS;
}

/** The entries of the host's queue, in order. */
export function entriesIn(volumes: readonly string[]): QueueEntry[] {
  const entries = ofKind(volumes, "queue").map(({ volume, name: machine, fields }) => {
    const [number, memoryMib, process, host] = fields;
    return { volume, machine, number: Number(number), memoryMib: Number(memoryMib), process, host };
  });
  return inOrder(entries);
}

/** Whether the entry is not too old and its process runs. On another host, only its age counts. */
export async function isLiveEntry(
  entry: QueueEntry,
  { longestSeconds }: { readonly longestSeconds: number },
): Promise<boolean> {
  if (Math.abs(Date.now() - entry.number) > longestSeconds * 1000) return false;
  return await runsByName(entry) ?? true;
}

/** Joins the host's queue. */
export async function enterQueue(
  pool: StoragePool,
  machine: string,
  { memoryMib, longestSeconds, signal }: {
    readonly memoryMib: number;
    readonly longestSeconds: number;
    readonly signal: AbortSignal;
  },
): Promise<Entered<QueueEntry>> {
  const { process, host } = await ownProcessInName();
  return await enqueue(
    pool,
    (number) => volumeName(machine, "queue", number, memoryMib, process, host),
    async (volumes) => (await liveEntries(pool, volumes, { longestSeconds })).at(-1),
    signal,
  );
}

/** Leaves the host's queue. */
export async function leaveQueue(pool: StoragePool, { volume }: QueueEntry): Promise<void> {
  await removeVolume(pool, volume);
}

/**
 * The valid entries of the host's queue, in order. Removes those of killed prepares, but counts them
 * once more: libvirt may be starting their domains.
 */
export async function liveEntries(
  pool: StoragePool,
  volumes: readonly string[],
  limits: { readonly longestSeconds: number },
): Promise<QueueEntry[]> {
  const live: QueueEntry[] = [];
  for (const entry of entriesIn(volumes)) {
    const isCounted = await isLiveEntry(entry, limits) ||
      await removeVolume(pool, entry.volume).catch(() => false);
    if (isCounted) live.push(entry);
  }
  return live;
}

/** A machine among those of its project, from before it waits for the others until cleanup. */
export interface ProjectEntry extends Queued {
  /** A hash of the project's path. */
  readonly project: string;
}

/** Joins the queue of the project with this path. */
export async function enterProject(
  pool: StoragePool,
  machine: string,
  { project: path, signal }: { readonly project: string; readonly signal: AbortSignal },
): Promise<Entered<ProjectEntry>> {
  const project = await shortHash(`libvirt-gci project ${path}`);
  return await enqueue(
    pool,
    (number) => volumeName(machine, "project", number, project),
    (volumes) => Promise.resolve(projectEntries(project, volumes).at(-1)),
    signal,
  );
}

/** The entries of the project ahead of this one; null if this one is gone. */
export function entriesBefore(
  { volume, project }: ProjectEntry,
  volumes: readonly string[],
): ProjectEntry[] | null {
  const entries = projectEntries(project, volumes);
  const at = entries.findIndex((entry) => entry.volume === volume);
  return at < 0 ? null : entries.slice(0, at);
}

function projectEntries(project: string, volumes: readonly string[]): ProjectEntry[] {
  const entries = ofKind(volumes, "project").map(({ volume, name: machine, fields }) => {
    return { volume, machine, number: Number(fields[0]), project: fields[1] };
  });
  return inOrder(entries.filter((entry) => entry.project === project));
}
