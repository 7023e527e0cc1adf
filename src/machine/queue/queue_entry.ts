// SPDX-License-Identifier: GPL-2.0-or-later
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { hostMark, processMark } from "../process.ts";
import { enqueue, type Entered, inOrder, type Queued } from "./queue.ts";
import { ofKind, volumeName } from "../storage/volume_names.ts";
import { removeVolume } from "../storage/volumes.ts";

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
export function longestQueueSeconds(
  { queueSeconds }: { readonly queueSeconds: number },
): number {
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
