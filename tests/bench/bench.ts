// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * The figures that libvirt-gci is to reach, each measured beside what it is compared to, in one run.
 * The arguments name the parts to measure, or none for all. LIBVIRT_GCI names the compiled program;
 * without it, main.ts is measured, which starts slower.
 */
import { parseArgs } from "node:util";
import { measureCrowd } from "./crowd.ts";
import { measureJob } from "./job.ts";
import { measureMemory } from "./memory.ts";
import { measureOthers } from "./others.ts";
import { measurePrepare } from "./prepare.ts";
import { cancelOnSignals } from "./program.ts";
import { measureRun } from "./run.ts";
import { measureStart } from "./start.ts";
import { measureVersion } from "./version.ts";
import { measureWarm } from "./warm.ts";
import { PROGRAM, settingsFile } from "../e2e/bed.ts";

/** What to measure with. */
interface BenchOptions {
  /** How often, where a part does not have to know better. */
  readonly runs: number | undefined;
  readonly templates: readonly string[] | undefined;
  /** The file for the plot of `warm` or of `job`. */
  readonly svg: string | undefined;
  /** The checkout of the Python tool, for `job`. */
  readonly python: string | undefined;
}

/** Each part with its usual number of runs, by the name that the command line has for it. */
const PARTS = {
  others: ({ runs }) => measureOthers(runs ?? 21),
  version: ({ runs }) => measureVersion(PROGRAM, runs ?? 21),
  start: ({ runs }) => measureStart(PROGRAM, runs ?? 15),
  run: ({ runs }) => withSettings((ours) => measureRun(ours, runs ?? 15)),
  prepare: ({ runs }) => withSettings((ours) => measurePrepare(ours, runs ?? 7)),
  warm: ({ runs, templates, svg }) =>
    measureWarm(PROGRAM, { templates: templates ?? ["lite", "cloud"], runs: runs ?? 11, svg }),
  job: ({ runs, svg, python }) => measureJob(PROGRAM, { runs: runs ?? 11, svg, python }),
  crowd: async ({ runs, templates }) => {
    for (const name of templates ?? ["lite"]) await measureCrowd(PROGRAM, name, runs ?? 3);
  },
  memory: async ({ templates }) => {
    for (const name of templates ?? ["lite", "cloud"]) await measureMemory(PROGRAM, name);
  },
} satisfies Record<string, (options: BenchOptions) => Promise<void>>;

async function withSettings(measure: (ours: readonly string[]) => Promise<void>): Promise<void> {
  using settings = settingsFile();
  await measure([...PROGRAM, "--config", settings.path]);
}

type Part = keyof typeof PARTS;

const USAGE = `The parts are ${Object.keys(PARTS).join(", ")}; ` +
  "the options --runs NUMBER, --template NAME (more than once), --svg FILE, --python DIR";

/** The parts that the arguments name, or all of them, and the options. Throws an Error that says which are. */
function parseOptions(args: string[]): [parts: readonly Part[], options: BenchOptions] {
  try {
    const { values: { runs, template: templates, svg, python }, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        runs: { type: "string" },
        template: { type: "string", multiple: true },
        svg: { type: "string" },
        python: { type: "string" },
      },
    });
    const other = positionals.find((name) => !(name in PARTS));
    if (other !== undefined) throw new Error(`There is no part "${other}"`);
    if (runs !== undefined && !/^[1-9]\d*$/.test(runs)) {
      throw new Error("--runs is a number from 1 on");
    }
    const parts = positionals.length > 0 ? positionals : Object.keys(PARTS);
    if (svg !== undefined && parts.includes("warm") && parts.includes("job")) {
      throw new Error("--svg is for one plot: name the part warm or the part job");
    }
    const count = runs === undefined ? runs : Number(runs);
    return [parts as Part[], { runs: count, templates, svg, python }];
  } catch (error) {
    throw new Error(`${error instanceof Error ? error.message : error}. ${USAGE}`);
  }
}

try {
  const [parts, options] = parseOptions(Deno.args);
  cancelOnSignals();
  for (const part of parts) await PARTS[part](options);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
Deno.exit(0);
