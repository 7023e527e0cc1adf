// SPDX-License-Identifier: GPL-2.0-or-later

/** What failed, why, and what to do about it. */
export interface Failure {
  /** What failed and on what, the thing in double quotes, without a full stop. */
  readonly what: string;
  /** The error behind it. */
  readonly cause?: unknown;
  /** Something to run or to edit. */
  readonly advice?: string;
  /** More for the job's log, already fit to print: the end of a serial console, say. */
  readonly details?: string;
}

abstract class StageFailure extends Error {
  readonly advice: string | undefined;
  readonly details: string | undefined;

  constructor({ what, cause, advice, details }: Failure) {
    super(what, { cause });
    this.advice = advice;
    this.details = details;
  }
}

/** The job's fault: GitLab Runner does not try again. */
export class BuildFailure extends StageFailure {
  override readonly name = "BuildFailure";
}

/** The host's fault: GitLab Runner may try again. */
export class SystemFailure extends StageFailure {
  override readonly name = "SystemFailure";
}

/** The job's script ended with a status other than 0, after its own words about it. */
export class ScriptFailure extends BuildFailure {
  readonly scriptStatus: number;

  constructor(scriptStatus: number) {
    super({ what: `The script ended with the status ${scriptStatus}` });
    this.scriptStatus = scriptStatus;
  }
}

/** The operator called the program wrongly: exit status 2, as command line programs have it. */
export class UsageError extends StageFailure {
  override readonly name = "UsageError";
}

/** What an error says. The further lines of one that is not ours may be anybody's words. */
function wordsOf(error: unknown): string {
  if (error instanceof StageFailure) return error.message;
  const words = error instanceof Error ? error.message || error.name : String(error);
  return words.trimEnd().replace(/\s*\n/g, "\n  ");
}

/** The error and each cause behind it, a line each, then the advice, then the details. */
export function explain(error: unknown): string {
  const lines: string[] = [];
  const advice: string[] = [];
  const details: string[] = [];
  let cause = error;
  do {
    const words = wordsOf(cause);
    lines.push(lines.length === 0 ? words : `because: ${words}`);
    if (!(cause instanceof Error)) break;
    if ("advice" in cause && typeof cause.advice === "string") advice.push(cause.advice);
    if (cause instanceof StageFailure && cause.details) details.push(cause.details);
    cause = cause.cause;
  } while (cause !== undefined);
  const first = advice[0];
  if (first !== undefined) lines.push(`What to do: ${first}`);
  return [...lines, ...details].join("\n");
}
