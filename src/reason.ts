// SPDX-License-Identifier: GPL-2.0-or-later
import { explain } from "./errors.ts";

const LABEL = "What to do: ";

/** What an error and its causes say, a line each, without the advice. */
export function reasonOf(error: unknown): string {
  return explain(error).split("\n").filter((line) => !line.startsWith(LABEL)).join("\n");
}
