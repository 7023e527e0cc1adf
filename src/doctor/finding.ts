// SPDX-License-Identifier: GPL-2.0-or-later

/** How bad a finding is: with a problem, jobs fail or harm others; with a warning, they suffer. */
export type Level = "ok" | "warning" | "problem";

export interface Finding {
  /** A sentence without a full stop. */
  readonly subject: string;
  readonly level: Level;
  /** Its meaning for jobs; empty if all is well. */
  readonly meaning: string;
  /** A command to paste that fixes it. */
  readonly remedy: string | null;
}

export type Found = Finding | null | readonly Found[];

export function listFindings(found: Found): Finding[] {
  if (found === null) return [];
  return "level" in found ? [found] : found.flatMap(listFindings);
}

interface Weight {
  readonly meaning: string;
  readonly remedy?: string | null;
}

export function ok(subject: string): Finding {
  return { subject, level: "ok", meaning: "", remedy: null };
}

export function warning(subject: string, { meaning, remedy = null }: Weight): Finding {
  return { subject, level: "warning", meaning, remedy };
}

export function problem(subject: string, { meaning, remedy = null }: Weight): Finding {
  return { subject, level: "problem", meaning, remedy };
}
