// SPDX-License-Identifier: GPL-2.0-or-later
import type { Stream } from "./process.ts";

/**
 * What happens to the job:
 *
 * - `soft_cancel`: a user cancels it in GitLab
 * - `hard_cancel`: it is aborted, for instance because GitLab forgot it
 * - a function: whatever the test does at this point, given the directory of the attempt
 */
export type Action =
  | "soft_cancel"
  | "hard_cancel"
  | ((attempt: { readonly dir: string }) => void | Promise<void>);

/** An action at a point of a job. It comes once. */
export interface JobEvent {
  /** "config", "prepare", "cleanup", or the stage that is passed to run. */
  readonly stage: string;
  /** Wait until one of the stage's outputs contains this text. */
  readonly whenOutput?: string;
  /** Then wait this long; the stage must be alive at the end. */
  readonly afterMs?: number;
  readonly action: Action;
}

/** Follows one stage until `end()`. */
export interface StageWatch {
  readonly onOutput: (stream: Stream, chunk: Uint8Array) => void;
  readonly end: () => void;
}

/** Takes the events of this stage out of `pending` and fires them when their time has come. */
export function watchStage(
  pending: Set<JobEvent>,
  stage: string,
  fire: (action: Action) => void,
): StageWatch {
  const timers: ReturnType<typeof setTimeout>[] = [];
  const texts = { stdout: "", stderr: "" };
  const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  const waiting = new Set([...pending].filter((event) => event.stage === stage));

  function fireEvent(event: JobEvent): void {
    pending.delete(event);
    fire(event.action);
  }

  function fireWhatIsDue(): void {
    for (const event of waiting) {
      const text = event.whenOutput;
      if (text && !texts.stdout.includes(text) && !texts.stderr.includes(text)) continue;
      waiting.delete(event);
      if (event.afterMs) timers.push(setTimeout(() => fireEvent(event), event.afterMs));
      else fireEvent(event);
    }
  }

  fireWhatIsDue();
  return {
    onOutput: (stream, chunk) => {
      if (waiting.size === 0) return;
      texts[stream] += decoders[stream].decode(chunk, { stream: true });
      fireWhatIsDue();
    },
    end: () => timers.forEach((timer) => clearTimeout(timer)),
  };
}
