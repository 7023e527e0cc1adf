// SPDX-License-Identifier: GPL-2.0-or-later
import { parseArgs } from "node:util";

/** What `deno task bench` is to measure. */
export interface BenchOptions<Part extends string = string> {
  readonly parts: readonly Part[];
  /** How often, where a part does not have to know better. */
  readonly runs: number | null;
  readonly templates: readonly string[] | null;
  /** The file for the plot of `warm`. */
  readonly svg: string | null;
}

/** Reads the arguments: names of parts, or none for all of them. Throws an Error that says what is. */
export function parseOptions<Part extends string>(
  args: readonly string[],
  parts: readonly Part[],
): BenchOptions<Part> {
  const usage = `The parts are ${parts.join(", ")}; ` +
    "the options --runs NUMBER, --template NAME (more than once), --svg FILE";
  const { values, positionals } = parse(args, usage);
  const asked = positionals.map((name) => {
    const part = parts.find((part) => part === name);
    if (part === undefined) throw new Error(`There is no part "${name}". ${usage}`);
    return part;
  });
  const runs = values.runs === undefined ? null : Number(values.runs);
  if (runs !== null && !(Number.isInteger(runs) && runs > 0)) {
    throw new Error(`--runs is a number from 1 on, not "${values.runs}". ${usage}`);
  }
  return {
    parts: asked.length === 0 ? parts : asked,
    runs,
    templates: values.template ?? null,
    svg: values.svg ?? null,
  };
}

function parse(args: readonly string[], usage: string) {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        runs: { type: "string" },
        template: { type: "string", multiple: true },
        svg: { type: "string" },
      },
    });
  } catch (error) {
    throw new Error(`${error instanceof Error ? error.message : error}. ${usage}`);
  }
}
