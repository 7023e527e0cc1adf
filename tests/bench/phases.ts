// SPDX-License-Identifier: GPL-2.0-or-later
import { median, table } from "./measure.ts";

/** Seconds by the name of a step of prepare. */
export type Steps = ReadonlyMap<string, number>;

/** How machines started in one way: the medians of all runs. */
export interface Bar {
  readonly name: string;
  readonly seconds: number;
  readonly phases: Steps;
}

/** What starting prepare itself takes, and ending it: the rest of its time. */
export const REST = "other";

/** The steps in what prepare prints when the machine is ready: `(queue 9 ms, start 0.7 s)`. */
export function stepsOf(output: string): Steps {
  const words = /is ready .* in [\d.]+ m?s \((.*)\)/.exec(output)?.[1] ?? "";
  return new Map(
    words.split(", ").map((step) => {
      const [, name = step, number, unit] = /^(.*) ([\d.]+) (m?s)$/.exec(step) ?? [];
      return [name, Number(number) / (unit === "ms" ? 1000 : 1)];
    }),
  );
}

/** The medians of runs that took so many seconds, in these steps. */
export function barOf(
  name: string,
  runs: readonly { readonly seconds: number; readonly steps: Steps }[],
): Bar {
  const phases = phaseNames(runs.map(({ steps }) => ({ phases: steps }))).map((step) =>
    [step, median(runs.map(({ steps }) => steps.get(step) ?? 0))] as const
  );
  const rest = runs.map(({ seconds, steps }) => seconds - sum([...steps.values()]));
  return {
    name,
    seconds: median(runs.map(({ seconds }) => seconds)),
    phases: new Map([...phases, [REST, Math.max(0, median(rest))]]),
  };
}

/** All names of phases, in an order that is that of each bar. */
export function phaseNames(bars: readonly Pick<Bar, "phases">[]): string[] {
  const names: string[] = [];
  for (const { phases } of bars) {
    const own = [...phases.keys()];
    for (const [i, name] of own.entries()) {
      if (names.includes(name)) continue;
      const next = own.slice(i).find((later) => names.includes(later));
      names.splice(next === undefined ? names.length : names.indexOf(next), 0, name);
    }
  }
  return names;
}

/** A table in Markdown: a row for each phase, a column for each bar. */
export function phaseTable(bars: readonly Bar[]): string {
  return table([
    ["seconds", ...bars.map(({ name }) => name)],
    ...phaseNames(bars).map((phase) => [
      phase,
      ...bars.map(({ phases }) => phases.get(phase)?.toFixed(2) ?? ""),
    ]),
    ["all", ...bars.map(({ seconds }) => seconds.toFixed(2))],
  ]);
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((a, b) => a + b, 0);
}
