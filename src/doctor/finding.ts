// SPDX-License-Identifier: GPL-2.0-or-later

/** How bad a finding is: with a problem, jobs fail or harm others; with a warning, they suffer. */
export type Level = "ok" | "warning" | "problem";

/** One thing that a check found on the host. */
export interface Finding {
  /** What is so, as a sentence without a full stop. */
  readonly subject: string;
  readonly level: Level;
  /** What it means for jobs; empty where all is well. */
  readonly meaning: string;
  /** The command that mends it, fit to paste; null where there is none. */
  readonly remedy: string | null;
}

/** What a check gives: one finding, none, or a list of these. */
export type Found = Finding | null | readonly Found[];

/** All that were found, in order. */
export function listFindings(found: Found): Finding[] {
  if (found === null) return [];
  return "level" in found ? [found] : found.flatMap(listFindings);
}

/** What makes more of a fact than that it is well. */
interface Weight {
  readonly meaning: string;
  readonly remedy?: string | null;
}

/** A finding that needs nothing. */
export function ok(subject: string): Finding {
  return { subject, level: "ok", meaning: "", remedy: null };
}

/** A finding with which jobs run, but slowly, rarely fail, or are less safe. */
export function warning(subject: string, { meaning, remedy = null }: Weight): Finding {
  return { subject, level: "warning", meaning, remedy };
}

/** A finding with which jobs fail, or corrupt what is not theirs. */
export function problem(subject: string, { meaning, remedy = null }: Weight): Finding {
  return { subject, level: "problem", meaning, remedy };
}
