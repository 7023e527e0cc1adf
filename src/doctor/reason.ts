// SPDX-License-Identifier: GPL-2.0-or-later
import { explain } from "../errors.ts";

const ADVICE = "What to do: ";

/** What an error and its causes say, a line each, without the advice. */
export function reasonOf(error: unknown): string {
  return explain(error).split("\n").filter((line) => !line.startsWith(ADVICE)).join("\n");
}

/** The advice of an error, or of the first cause that has one; null without. */
export function adviceOf(error: unknown): string | null {
  const line = explain(error).split("\n").find((line) => line.startsWith(ADVICE));
  return line?.slice(ADVICE.length) ?? null;
}
