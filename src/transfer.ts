// SPDX-License-Identifier: GPL-2.0-or-later
import { durationText } from "./duration.ts";
import type { Progress } from "./wait.ts";

/** Who hears of a transfer. */
export interface TransferReport {
  readonly log: (line: string) => void;
  /** Shows it at a terminal, in one place; null without a terminal. */
  readonly progress: Progress | null;
}

const SHOW_MS = 500;
const LOG_MS = 10_000;
const MIB = 1024 ** 2;

/** How far a transfer is. */
export interface TransferState {
  readonly bytes: number;
  /** All that there will be, or null if unknown. */
  readonly total: number | null;
  /** How many of the bytes came in so many seconds; the others were there before. */
  readonly moved: number;
  readonly seconds: number;
}

/** How far it is, as people read it: `312 of 2048 MiB (15 %), 104 MiB/s, 17 s left`. */
export function transferText({ bytes, total, moved, seconds }: TransferState): string {
  const mib = Math.floor(bytes / MIB);
  const rate = seconds > 0 ? moved / seconds : 0;
  const left = total === null || rate === 0 ? null : Math.max(0, total - bytes) / rate;
  return [
    total === null
      ? `${mib} MiB`
      : `${mib} of ${Math.ceil(total / MIB)} MiB (${
        Math.floor(bytes / Math.max(total, 1) * 100)
      } %)`,
    ...(rate === 0 ? [] : [`${(rate / MIB).toFixed(rate < 10 * MIB ? 1 : 0)} MiB/s`]),
    ...(left === null ? [] : [`${durationText(Math.ceil(left))} left`]),
  ].join(", ");
}

/** Tells how far a transfer is until it is disposed of: in place at a terminal, else every ten seconds. */
export class Transfer implements Disposable {
  readonly #report: TransferReport;
  readonly #what: string;
  readonly #timer: ReturnType<typeof setInterval>;
  readonly #start = performance.now();
  #first: number | null = null;
  #bytes = 0;
  #total: number | null = null;

  /** `what` is told before the figures, such as `Downloading "x"`. */
  constructor(what: string, report: TransferReport, everyMs?: number) {
    this.#what = what;
    this.#report = report;
    const period = everyMs ?? (report.progress === null ? LOG_MS : SHOW_MS);
    this.#timer = setInterval(() => this.#tell(), period);
  }

  /** How many bytes there are now, and how many there will be. */
  readonly update = (bytes: number, total: number | null): void => {
    this.#first ??= bytes;
    this.#bytes = bytes;
    this.#total = total;
  };

  #tell(): void {
    if (this.#first === null) return;
    const seconds = (performance.now() - this.#start) / 1000;
    const moved = this.#bytes - this.#first;
    const state = { bytes: this.#bytes, total: this.#total, moved, seconds };
    const { log, progress } = this.#report;
    (progress ?? log)(`${this.#what}: ${transferText(state)}`);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#report.progress?.(null);
  }
}
