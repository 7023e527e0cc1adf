// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * All that prepare does, in its order: `overlay` to `start` of a machine that boots, to `identity` of one
 * that is resumed (`RAM` where it is copied), `claim` to `keys` of one that waited. The last are of all.
 */
export const STEPS = [
  ...["turn", "overlay", "start"] as const,
  ...["RAM", "resume", "card", "agent", "filter", "identity"] as const,
  ...["claim", "record", "keys"] as const,
  ...["address", "ssh"] as const,
] as const;

/** One of {@linkcode STEPS}. */
export type Step = typeof STEPS[number];

/** Told that a step has ended. */
export type OnStep = (step: Step, milliseconds: number) => void;

/** Says what each step of a stage took, and all of it. */
export class StepTimer {
  readonly #onStep: OnStep | null;
  readonly #steps: string[] = [];
  readonly #began = performance.now();
  #start = this.#began;

  /** The first step begins now. */
  constructor(onStep: OnStep | null) {
    this.#onStep = onStep;
  }

  /** Another that tells of its steps likewise, of which the first begins now. */
  anew(): StepTimer {
    return new StepTimer(this.#onStep);
  }

  /** What was done since the last step belongs to none: the next begins now. */
  skip(): void {
    this.#start = performance.now();
  }

  /** Ends a step, which began when the one before it ended. Only {@linkcode STEPS} are told of. */
  end(step: string): void {
    const now = performance.now();
    const known = STEPS.find((known) => known === step);
    if (known !== undefined) this.#onStep?.(known, now - this.#start);
    this.#steps.push(`${step} ${formatDuration(now - this.#start)}`);
    this.#start = now;
  }

  /** Such as `8.9 s (turn 9 ms, overlay 24 ms, start 0.7 s, address 7.2 s, ssh 0.9 s)`. */
  summary(): string {
    return `${formatDuration(performance.now() - this.#began)} (${this.#steps.join(", ")})`;
  }
}

function formatDuration(milliseconds: number): string {
  return milliseconds < 100
    ? `${Math.round(milliseconds)} ms`
    : `${(milliseconds / 1000).toFixed(1)} s`;
}
