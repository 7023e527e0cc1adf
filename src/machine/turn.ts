// SPDX-License-Identifier: GPL-2.0-or-later
import type { StoragePool } from "../libvirt/storage_pool.ts";
import { sleep } from "../wait.ts";
import { hostMark, processMark } from "./owner.ts";
import { createRawVolume, deleteVolume } from "./volumes.ts";

/**
 * A machine that waits to start, or is about to: an empty volume from before its start until its
 * domain runs. Its name says all, so one list of the pool's volumes tells who is there and who came
 * first.
 */
export interface Turn {
  /** The volume's name. */
  readonly volume: string;
  readonly machine: string;
  /** Who has a smaller one came first: the time in milliseconds, or a little more. */
  readonly number: number;
  readonly memoryMib: number;
  /** The process of prepare, as `PID-START-BOOT`, and where it is, see hostMark; empty if unknown. */
  readonly process: string;
  readonly host: string;
}

const TURN = /^(.+)\.(\d+)-(\d+)-(\d+-\d+-[0-9a-f]{8})-([0-9a-f]*)\.turn\.libvirt-gci$/;
const UNKNOWN = "0-0-00000000";

/** What a volume's name says, or null if it is no turn. */
export function parseTurn(volume: string): Turn | null {
  const match = TURN.exec(volume);
  if (match === null) return null;
  const [, machine = "", number, memoryMib, process = "", host = ""] = match;
  return { volume, machine, number: Number(number), memoryMib: Number(memoryMib), process, host };
}

/** The turns among these volumes, the first first. */
export function turnsOf(volumes: readonly string[]): Turn[] {
  return volumes.map(parseTurn).filter((turn) => turn !== null)
    .sort((a, b) => a.number - b.number || (a.volume < b.volume ? -1 : 1));
}

/**
 * Whether the turn's prepare may still go on: it has not taken longer than any does, and its process
 * runs. Of another host only the time is known.
 */
export async function isLive(
  { number, process, host }: Turn,
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

/** How long turns count, and when to stop. */
export interface TurnLimits {
  readonly longestSeconds: number;
  readonly signal: AbortSignal;
}

/** A turn, with the names of the pool's volumes as they were just after it came. */
export interface TakenTurn {
  readonly turn: Turn;
  readonly volumes: readonly string[];
}

/**
 * Takes the next turn. Whoever has a greater number has seen this turn when it looks who is ahead:
 * a greater one that is there already may have looked before, so this one is given back and taken
 * anew behind it.
 */
export async function takeTurn(
  pool: StoragePool,
  machine: string,
  { memoryMib, ...limits }: TurnLimits & { readonly memoryMib: number },
): Promise<TakenTurn> {
  let last = 0;
  for (let attempt = 0;; attempt++) {
    limits.signal.throwIfAborted();
    const turn = await newTurn(machine, { memoryMib, number: Math.max(Date.now(), last + 1) });
    {
      using _ = await createRawVolume(pool, turn.volume, 0);
    }
    const volumes = await pool.volumeNames();
    const greatest = (await turnsThatCount(pool, volumes, limits)).at(-1);
    if (greatest?.volume === turn.volume) return { turn, volumes };
    await endTurn(pool, turn);
    last = greatest?.number ?? 0;
    await sleep(Math.random() * 2 ** Math.min(attempt, 8), limits.signal); // many may have come at once
  }
}

async function newTurn(
  machine: string,
  { memoryMib, number }: { readonly memoryMib: number; readonly number: number },
): Promise<Turn> {
  const process = processOf(Deno.pid) ?? UNKNOWN;
  const host = process === UNKNOWN ? "" : await hostMark();
  const volume = `${machine}.${number}-${memoryMib}-${process}-${host}.turn.libvirt-gci`;
  return { volume, machine, number, memoryMib, process, host };
}

/** Gives the turn up: once the domain runs, that counts instead. */
export async function endTurn(pool: StoragePool, { volume }: Turn): Promise<void> {
  await deleteVolume(pool, volume);
}

/**
 * The turns among these volumes that count, the first first. Ends those of prepares that were
 * killed, which count this once: libvirt may be about to start their domains.
 */
export async function turnsThatCount(
  pool: StoragePool,
  volumes: readonly string[],
  limits: Pick<TurnLimits, "longestSeconds">,
): Promise<Turn[]> {
  const counting: Turn[] = [];
  for (const turn of turnsOf(volumes)) {
    if (
      await isLive(turn, limits) || await deleteVolume(pool, turn.volume).catch(() => false)
    ) counting.push(turn);
  }
  return counting;
}
