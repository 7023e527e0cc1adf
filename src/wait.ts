// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "./errors.ts";

/** What a probe gives while the condition does not hold, and why it does not. */
export class NotYet {
  readonly reason: string;

  constructor(reason: string) {
    this.reason = reason;
  }
}

/** What is waited for. */
export interface Goal<T> {
  /** Ends the sentence "The machine did not …". */
  readonly goal: string;
  /** Asked again and again. It throws what will not get better. */
  readonly probe: () => Promise<T | NotYet>;
  /** Something to run or to edit when the time is over. */
  readonly advice: string;
}

/** How long a wait may take, and who hears of it. */
export interface Limits {
  readonly timeoutSeconds: number;
  readonly signal: AbortSignal;
  /** Told the reason of a wait that takes long, every ten seconds. */
  readonly log: (line: string) => void;
}

const FIRST_PAUSE_MS = 10;
const LONGEST_PAUSE_MS = 100;
const REPORT_MS = 10_000;

/**
 * Probes until the condition holds: fast at first, then ten times a second. Throws SystemFailure
 * with the last reason when the time is over, and the signal's reason when it aborts.
 */
export async function waitFor<T>({ goal, probe, advice }: Goal<T>, limits: Limits): Promise<T> {
  const start = performance.now();
  const { timeoutSeconds, signal, log } = limits;
  let pause = FIRST_PAUSE_MS;
  let nextReport = REPORT_MS;
  for (;;) {
    signal.throwIfAborted();
    const result = await probe();
    if (!(result instanceof NotYet)) return result;
    const elapsed = performance.now() - start;
    if (elapsed > timeoutSeconds * 1000) {
      throw new SystemFailure({
        what: `The machine did not ${goal} within ${timeoutSeconds} s: ${result.reason}`,
        advice,
      });
    }
    if (elapsed > nextReport) {
      log(`Still waiting after ${Math.round(elapsed / 1000)} s to ${goal}: ${result.reason}`);
      nextReport = elapsed + REPORT_MS;
    }
    await sleep(pause, signal);
    pause = Math.min(pause * 1.5, LONGEST_PAUSE_MS);
  }
}

/** Sleeps, or less if the signal aborts. */
export async function sleep(milliseconds: number, signal?: AbortSignal): Promise<void> {
  if (signal?.aborted) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, milliseconds);
  const wake = (): void => resolve();
  signal?.addEventListener("abort", wake);
  await promise;
  clearTimeout(timer);
  signal?.removeEventListener("abort", wake);
}

/** What the promise gives, or null when the time is over or the signal aborts before. */
export async function within<T>(
  promise: Promise<T>,
  milliseconds: number,
  signal?: AbortSignal,
): Promise<T | null> {
  const over = new AbortController();
  const either = signal ? AbortSignal.any([over.signal, signal]) : over.signal;
  promise.catch(() => {}); // nobody may be waiting any more
  try {
    return await Promise.race([promise, sleep(milliseconds, either).then(() => null)]);
  } finally {
    over.abort();
  }
}
