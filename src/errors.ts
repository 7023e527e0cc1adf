// SPDX-License-Identifier: GPL-2.0-or-later
import { foreignWords } from "./quoted.ts";

/** The possible faults, in words that stay the same: messages are too many to count. */
export const FAULTS = [
  "script", // ended with a status other than 0, or an earlier one left no space for it
  "request", // the job asks for what it may not have, or for an invalid value
  "template", // there is none, or it lacks what it needs
  "settings", // or a file that they name
  "libvirt", // a call failed, or there is no libvirt
  "storage", // a pool, or its space
  "network", // or its filters
  "room", // the host had none for the machine in time
  "start", // of the domain
  "kvm", // runs no guests, or libvirt cannot use it
  "address", // the machine got none in time
  "ssh_refused", // the guest refuses the key
  "ssh_timeout", // the guest's SSH server did not let us in in time
  "host_key", // is not the machine's own
  "guest_ended", // before the job did
  "lost", // the connection broke while the script ran
  "cancelled",
  "other",
] as const;

export type Fault = typeof FAULTS[number];

/** What failed, why, and what to do about it. */
export interface Failure {
  /** What failed and on what, the thing in double quotes, without a full stop. */
  readonly what: string;
  readonly cause?: unknown;
  readonly advice?: string;
  /** More for the job's log, already fit to print: the end of a serial console, say. */
  readonly details?: string;
  /** The fault; by default, that of the cause. */
  readonly fault?: Fault;
}

abstract class StageFailure extends Error {
  readonly advice: string | undefined;
  readonly details: string | undefined;
  readonly fault: Fault | undefined;

  constructor({ what, cause, advice, details, fault }: Failure) {
    super(what, { cause });
    this.advice = advice;
    this.details = details;
    this.fault = fault;
  }
}

/** The job's fault: GitLab Runner does not try again. */
export class BuildFailure extends StageFailure {
  override readonly name = "BuildFailure";

  constructor(failure: Failure) {
    super({ fault: "request", ...failure });
  }
}

/** The host's fault: GitLab Runner may try again. */
export class SystemFailure extends StageFailure {
  override readonly name = "SystemFailure";
}

/** The job's script ended with a status other than 0, after its own words about it. */
export class ScriptFailure extends BuildFailure {
  readonly scriptStatus: number;

  constructor(scriptStatus: number) {
    super({ what: `The script ended with the status ${scriptStatus}`, fault: "script" });
    this.scriptStatus = scriptStatus;
  }
}

/** The operator called the program wrongly: exit status 2, as command line programs have it. */
export class UsageError extends StageFailure {
  override readonly name = "UsageError";
}

/** The error's message. A message that is not ours may contain any text. */
function wordsOf(error: unknown): string {
  if (error instanceof StageFailure) return error.message;
  return foreignWords(error instanceof Error ? error.message || error.name : String(error));
}

/** Gives the promise's value, or throws this failure with the promise's error as its cause. */
export async function orFailure<T>(task: Promise<T>, failure: Omit<Failure, "cause">): Promise<T> {
  try {
    return await task;
  } catch (cause) {
    throw new SystemFailure({ ...failure, cause });
  }
}

/** Gives the task's value, or the fallback if it throws BuildFailure. */
export function unlessRefused<T, F>(task: () => T, fallback: F): T | F {
  try {
    return task();
  } catch (error) {
    if (error instanceof BuildFailure) return fallback;
    throw error;
  }
}

/** The failure of several things at once, with all their reasons as details. */
export function severalFailures(
  failure: Pick<Failure, "what" | "advice">,
  reasons: readonly unknown[],
): SystemFailure {
  const details = reasons.map((reason) => `- ${explain(reason).replaceAll("\n", "\n  ")}`);
  return new SystemFailure({ ...failure, details: details.join("\n") });
}

/** The fault of the error or, if it has none, of the first cause that has one. */
export function faultOf(error: unknown): Fault {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const fault = "fault" in cause ? cause.fault : undefined; // libvirt's errors have it too
    const known = FAULTS.find((it) => it === fault);
    if (known !== undefined) return known;
  }
  return "other";
}

const LABEL = "What to do: ";

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
  if (first !== undefined) lines.push(LABEL + first);
  return [...lines, ...details].join("\n");
}

/** The messages of an error and its causes, a line each, without the advice. */
export function reasonOf(error: unknown): string {
  return explain(error).split("\n").filter((line) => !line.startsWith(LABEL)).join("\n");
}
