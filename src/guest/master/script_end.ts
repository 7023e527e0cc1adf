// SPDX-License-Identifier: GPL-2.0-or-later
import { type Fault, FAULTS, SystemFailure } from "../../errors.ts";
import { GuestFull, GuestSilent } from "../script.ts";

/** How a script ended, as one process tells it another. */
export type ScriptEnd =
  | { readonly status: number }
  /** It was cancelled, and whether the guest answered. */
  | { readonly cancelled: true; readonly answered: boolean }
  | { readonly failure: FailureWords };

/** An error as words. */
interface FailureWords {
  readonly name: string;
  readonly what: string;
  readonly fault?: Fault | undefined;
  readonly advice?: string | undefined;
  readonly cause?: FailureWords | undefined;
}

/** More than a message shows of it. All of them fit into a frame, whatever JSON makes of them. */
const MOST_CHARACTERS = 2001;
const MOST_CAUSES = 3;

/** What can be read out of an error that a script failed with. */
export function endOf(error: unknown): ScriptEnd {
  if (error instanceof GuestSilent) return { cancelled: true, answered: false };
  return { failure: toWords(error, MOST_CAUSES) };
}

function toWords(error: unknown, causes: number): FailureWords {
  const cut = (text: string) => text.slice(0, MOST_CHARACTERS);
  if (!(error instanceof Error)) return { name: "Error", what: cut(String(error)) };
  const cause = causes === 0 || error.cause === undefined
    ? undefined
    : toWords(error.cause, causes - 1);
  const what = cut(error.message);
  if (!(error instanceof SystemFailure)) return { name: "Error", what: what || error.name, cause };
  const { fault, advice } = error;
  const name = error instanceof GuestFull ? "GuestFull" : "SystemFailure";
  return { name, what, fault, advice: advice && cut(advice), cause };
}

/** Reads a {@linkcode ScriptEnd}; null if it is none. */
export function parseEnd(json: Readonly<Record<string, unknown>>): ScriptEnd | null {
  const { status, cancelled, answered, failure } = json;
  if (Number.isInteger(status)) return { status: Number(status) };
  if (cancelled === true) return { cancelled, answered: answered === true };
  return typeof failure === "object" && failure !== null
    ? { failure: failure as FailureWords }
    : null;
}

/** The error of these words. */
export function errorOf({ name, what, fault, advice, cause }: FailureWords): Error {
  const reason = cause === undefined ? {} : { cause: errorOf(cause) };
  if (name !== "GuestFull" && name !== "SystemFailure") return new Error(String(what), reason);
  const known = FAULTS.find((it) => it === fault);
  const failure = {
    what: String(what),
    ...reason,
    ...(known === undefined ? {} : { fault: known }),
    ...(advice === undefined ? {} : { advice: String(advice) }),
  };
  return name === "GuestFull" ? new GuestFull(failure) : new SystemFailure(failure);
}
