// SPDX-License-Identifier: GPL-2.0-or-later

/** The steps of prepare, for metrics. A machine that boots, resumes or waited has some of them. */
// deno-fmt-ignore
export const STEPS = [
  "turn", "overlay", "start", "RAM", "resume", "card", "agent", "filter", "identity",
  "claim", "record", "keys", "address", "ssh",
] as const;

/** One of {@linkcode STEPS}. */
export type Step = typeof STEPS[number];

/** The words for steps whose names say too little. The names are labels of metrics, so they stay. */
const WORDS: Readonly<Record<string, string>> = {
  project: "project limit",
  turn: "queue",
  overlay: "disk",
  RAM: "RAM copy",
  card: "network card",
  agent: "guest agent",
  filter: "network filter",
  address: "IP address",
  ssh: "SSH",
};

/** Called when a step has ended. */
export type OnStep = (step: Step, milliseconds: number) => void;

/** Measures the steps of a stage. */
export class StepTimer {
  readonly #onStep: OnStep | null;
  readonly #steps: string[] = [];
  readonly #began = performance.now();
  #start = this.#began;

  /** The first step begins now. */
  constructor(onStep: OnStep | null) {
    this.#onStep = onStep;
  }

  /** A new timer with the same callback, whose first step begins now. */
  anew(): StepTimer {
    return new StepTimer(this.#onStep);
  }

  /** Begins the next step now, so that the time since the last counts for none. */
  skip(): void {
    this.#start = performance.now();
  }

  /** Ends a step. Only {@linkcode STEPS} are reported. */
  end(step: string): void {
    const now = performance.now();
    const known = STEPS.find((known) => known === step);
    if (known !== undefined) this.#onStep?.(known, now - this.#start);
    this.#steps.push(`${WORDS[step] ?? step} ${formatDuration(now - this.#start)}`);
    this.#start = now;
  }

  /** Such as `8.9 s (queue 9 ms, disk 24 ms, start 0.7 s, IP address 7.2 s, SSH 0.9 s)`. */
  summary(): string {
    return `${formatDuration(performance.now() - this.#began)} (${this.#steps.join(", ")})`;
  }
}

function formatDuration(milliseconds: number): string {
  return milliseconds < 100
    ? `${Math.round(milliseconds)} ms`
    : `${(milliseconds / 1000).toFixed(1)} s`;
}
