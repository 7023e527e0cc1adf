// SPDX-License-Identifier: GPL-2.0-or-later
import type { Stream } from "./process.ts";

/**
 * What happens to the runner or the job:
 *
 * - `soft_cancel`: somebody cancels the job in GitLab
 * - `hard_cancel`: the job is aborted, for instance because GitLab forgot it
 * - `job_timeout`: the job's time is over
 * - `runner_stop`: the runner gets SIGTERM
 * - `runner_kill`: the runner gets SIGKILL
 * - a function: whatever the test does at this point
 */
export type Action =
  | "soft_cancel"
  | "hard_cancel"
  | "job_timeout"
  | "runner_stop"
  | "runner_kill"
  | ((stage: RunningStage) => void | Promise<void>);

/** An action at a point of a job. It comes once. */
export interface JobEvent {
  /** "config", "prepare", "cleanup", or the stage that is passed to run. */
  readonly stage: string;
  /** Only in this attempt, counted from 1. */
  readonly attempt?: number;
  /** Wait until one of the stage's outputs contains this text. */
  readonly whenOutput?: string;
  /** Then wait this long; the stage must be alive at the end. */
  readonly afterMs?: number;
  readonly action: Action;
}

/** A stage that runs now. */
export interface RunningStage {
  readonly name: string;
  readonly attempt: number;
  /** Also the id of its process group. */
  readonly pid: number;
  /** The directory of the attempt. */
  readonly dir: string;
}

/** Follows one stage until `end()`. */
export interface StageWatch {
  readonly onOutput: (stream: Stream, chunk: Uint8Array) => void;
  readonly end: () => void;
}

/** Takes the events of this stage out of `pending` and fires them when their time has come. */
export function watchStage(
  pending: Set<JobEvent>,
  stage: RunningStage,
  fire: (action: Action, stage: RunningStage) => void,
): StageWatch {
  const timers: ReturnType<typeof setTimeout>[] = [];
  const texts = { stdout: "", stderr: "" };
  const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  const waiting = new Set(
    [...pending].filter((event) =>
      event.stage === stage.name && (event.attempt ?? stage.attempt) === stage.attempt
    ),
  );

  function fireEvent(event: JobEvent): void {
    pending.delete(event);
    fire(event.action, stage);
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
