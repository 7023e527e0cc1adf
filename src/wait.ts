// SPDX-License-Identifier: GPL-2.0-or-later
import { type Fault, SystemFailure } from "./errors.ts";
import { foreignWords } from "./quoted.ts";

/** A probe's result while the condition does not hold, with the reason. */
export class NotYet {
  readonly reason: string;
  /** Replaces the goal's advice or fault when the time is over. */
  readonly failure: Partial<Pick<Goal<never>, "advice" | "fault">>;

  /** The reason may be a guest's words. */
  constructor(reason: string, failure: NotYet["failure"] = {}) {
    this.reason = foreignWords(reason);
    this.failure = failure;
  }
}

/** A condition to wait for. */
export interface Goal<T> {
  /** Ends the sentence "The machine did not …". */
  readonly goal: string;
  /** The same in few words, for a short line. Ends "Waiting for …". */
  readonly awaited: string;
  /** Asked again and again. It throws errors that waiting does not mend. */
  readonly probe: () => Promise<T | NotYet>;
  /** Something to run or to edit when the time is over. */
  readonly advice: string;
  /** The fault when the time is over. */
  readonly fault: Fault;
}

/** Shows a line in place of the one before, or takes it away. */
export type Progress = (line: string | null) => void;

/** The limits of a wait, and where it is reported. */
export interface Limits {
  readonly timeoutSeconds: number;
  readonly signal: AbortSignal;
  /** Called every ten seconds with the reason of a long wait. */
  readonly log: (line: string) => void;
  /** Called every second instead, at a terminal. */
  readonly progress?: Progress | null;
  /** The time that the caller has waited before, which counts too. */
  readonly waitedSeconds?: number;
  /** The longest pause between two probes; by default 100 ms. */
  readonly longestPauseMs?: number;
}

const FIRST_PAUSE_MS = 10;
const LONGEST_PAUSE_MS = 100;
const REPORT_MS = 10_000;
const PROGRESS_MS = 1000;

/**
 * Probes until the condition holds: fast at first, then more and more rarely. Throws SystemFailure
 * with the last reason when the time is over, and the signal's reason when it aborts.
 */
export async function waitFor<T>(
  { goal, awaited, probe, ...failure }: Goal<T>,
  limits: Limits,
): Promise<T> {
  const { timeoutSeconds, signal, log, progress = null } = limits;
  const { waitedSeconds = 0, longestPauseMs = LONGEST_PAUSE_MS } = limits;
  const start = performance.now() - waitedSeconds * 1000;
  let pause = FIRST_PAUSE_MS;
  let nextReport = waitedSeconds * 1000 + REPORT_MS;
  let reason = "";
  using _ = progress && everySecond((seconds) => {
    const time = `${Math.floor(waitedSeconds) + seconds} of ${timeoutSeconds} s`;
    progress(`Waiting for ${awaited}, ${time}${reason && `: ${reason}`}`);
  }, () => progress(null));
  for (;;) {
    signal.throwIfAborted();
    const result = await probe();
    if (!(result instanceof NotYet)) return result;
    reason = result.reason;
    const elapsed = performance.now() - start;
    if (elapsed > timeoutSeconds * 1000) {
      throw new SystemFailure({
        what: `The machine did not ${goal} within ${timeoutSeconds} s: ${reason}`,
        ...failure,
        ...result.failure,
      });
    }
    if (elapsed > nextReport && progress === null) {
      log(`Waiting for ${awaited} (${Math.round(elapsed / 1000)} s): ${reason}`);
      nextReport = elapsed + REPORT_MS;
    }
    await sleep(pause, signal);
    pause = Math.min(pause * 1.5, longestPauseMs);
  }
}

/** Calls it each second, also during a probe that takes long, until disposed of. */
function everySecond(call: (seconds: number) => void, end: () => void): Disposable {
  let seconds = 0;
  const timer = setInterval(() => call(++seconds), PROGRESS_MS);
  return {
    [Symbol.dispose]: () => {
      clearInterval(timer);
      end();
    },
  };
}

/** Sleeps, at most until the signal aborts. */
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

/** How to {@linkcode retry}. */
export interface RetryOptions {
  /** The most tries; by default as many as there are transient errors. */
  readonly tries?: number;
  readonly pauseMs?: number;
  /** Whether another try may help; by default it always may. */
  readonly isTransient?: (error: unknown) => boolean;
  readonly signal?: AbortSignal;
}

/** Tries until it works. Throws the last error when it may not try again, or when the signal aborts. */
export async function retry<T>(
  attempt: () => Promise<T>,
  { tries = Infinity, pauseMs = 100, isTransient = () => true, signal }: RetryOptions,
): Promise<T> {
  for (let tried = 1;; tried++) {
    try {
      return await attempt();
    } catch (error) {
      if (tried >= tries || !isTransient(error)) throw error;
      await sleep(pauseMs, signal);
      if (signal?.aborted) throw error;
    }
  }
}

/**
 * Runs all tasks at once, and gives their results. When one fails, the signal of the others aborts. When
 * all have ended, it throws the first error.
 */
export async function together<T extends readonly unknown[]>(
  signal: AbortSignal,
  ...tasks: { readonly [K in keyof T]: (signal: AbortSignal) => Promise<T[K]> }
): Promise<{ -readonly [K in keyof T]: T[K] }> {
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  const running = tasks.map(async (task) => {
    try {
      return await task(either);
    } catch (error) {
      failed.abort(error);
      throw error;
    }
  });
  await Promise.allSettled(running);
  if (failed.signal.aborted) throw failed.signal.reason;
  return await Promise.all(running) as { -readonly [K in keyof T]: T[K] };
}

/** Gives the promise's value, or null if the time is over or the signal aborts first. */
export async function within<T>(
  promise: Promise<T>,
  milliseconds: number,
  signal?: AbortSignal,
): Promise<T | null> {
  const over = new AbortController();
  const either = signal ? AbortSignal.any([over.signal, signal]) : over.signal;
  promise.catch(() => {}); // no caller may be waiting any more
  try {
    return await Promise.race([promise, sleep(milliseconds, either).then(() => null)]);
  } finally {
    over.abort();
  }
}

/** Rejects with the signal's reason when it aborts. */
export function rejectAtAbort(signal: AbortSignal): Promise<never> {
  const { promise, reject } = Promise.withResolvers<never>();
  signal.addEventListener("abort", () => reject(signal.reason));
  promise.catch(() => {}); // no caller may be waiting any more
  return promise;
}

/**
 * As Promise.all, but none runs on after another failed: it settles when all have. Throws the error that
 * came first, which may be the cause of the others.
 */
export async function allOf<T extends readonly unknown[]>(
  promises: readonly [...{ [I in keyof T]: T[I] | Promise<T[I]> }],
): Promise<T> {
  const all = Promise.all(promises);
  await Promise.allSettled([...promises, all]);
  return await all as unknown as T;
}
