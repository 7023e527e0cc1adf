// SPDX-License-Identifier: GPL-2.0-or-later

/** Says what each step of a stage took. */
export class StepTimer {
  readonly #steps: string[] = [];
  #start = performance.now();

  /** Ends a step, which began when the one before it ended. */
  end(step: string): void {
    const now = performance.now();
    this.#steps.push(`${step} ${formatDuration(now - this.#start)}`);
    this.#start = now;
  }

  /** Such as `overlay 24 ms, start 0.7 s, address 7.2 s, ssh 0.9 s`. */
  summary(): string {
    return this.#steps.join(", ");
  }
}

function formatDuration(milliseconds: number): string {
  return milliseconds < 100
    ? `${Math.round(milliseconds)} ms`
    : `${(milliseconds / 1000).toFixed(1)} s`;
}
