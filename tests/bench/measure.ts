// SPDX-License-Identifier: GPL-2.0-or-later
import { interrupted } from "./program.ts";

/** The middle of these numbers. */
export function median(numbers: readonly number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? NaN;
}

/** Milliseconds of two things, in turn: their medians, and the median of their ratios. */
export async function compare(
  runs: number,
  ours: () => Promise<unknown>,
  theirs: () => Promise<unknown>,
): Promise<{ ours: number; theirs: number; ratio: number }> {
  const pairs: [number, number][] = [];
  for (let i = 0; i < runs; i++) pairs.push([await time(ours), await time(theirs)]);
  return {
    ours: median(pairs.map(([a]) => a)),
    theirs: median(pairs.map(([, b]) => b)),
    ratio: median(pairs.map(([a, b]) => a / b)),
  };
}

/** Milliseconds that something takes. */
export async function time(action: () => Promise<unknown>): Promise<number> {
  interrupted.throwIfAborted();
  const start = performance.now();
  await action();
  return performance.now() - start;
}

/** One line of the report: what was measured, its value, the figure to reach, whether it is. */
export function report(what: string, measured: string, { goal, met }: {
  readonly goal: string;
  readonly met: boolean;
}): void {
  console.log(`${met ? "reached " : "MISSED  "} ${what}: ${measured} (goal: ${goal})`);
}

/** Markdown of a table whose first row is its head, and whose other columns hold numbers. */
export function table([head = [], ...rows]: readonly (readonly string[])[]): string {
  const rule = head.map((_, i) => i === 0 ? "---" : "---:");
  return [head, rule, ...rows].map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}
