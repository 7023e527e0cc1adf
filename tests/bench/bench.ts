// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * The figures that libvirt-gci is to reach, each measured beside what it is compared to, in one run.
 * The arguments name the parts to measure, or none for all: see options.ts. LIBVIRT_GCI names the
 * compiled program; without it, main.ts is measured, which starts slower.
 */

import { measureCrowd } from "./crowd.ts";
import { measureMemory } from "./memory.ts";
import { type BenchOptions, parseOptions } from "./options.ts";
import { measureOthers } from "./others.ts";
import { measurePrepare } from "./prepare.ts";
import { cancelOnSignals } from "./program.ts";
import { measureRun } from "./run.ts";
import { measureVersion } from "./version.ts";
import { measureWarm } from "./warm.ts";
import { PROGRAM, settingsFile } from "../e2e/bed.ts";

/** Each part with its usual number of runs, by the name that the command line has for it. */
const PARTS = {
  others: ({ runs }) => measureOthers(runs ?? 21),
  version: ({ runs }) => measureVersion(PROGRAM, runs ?? 21),
  run: ({ runs }) => withSettings((ours) => measureRun(ours, runs ?? 15)),
  prepare: ({ runs }) => withSettings((ours) => measurePrepare(ours, runs ?? 7)),
  warm: ({ runs, templates, svg }) =>
    measureWarm(PROGRAM, { templates: templates ?? ["lite", "cloud"], runs: runs ?? 11, svg }),
  crowd: ({ runs, templates }) =>
    measureCrowd(PROGRAM, { templates: templates ?? ["lite"], runs: runs ?? 3 }),
  memory: ({ templates }) => measureMemory(PROGRAM, templates ?? ["lite", "cloud"]),
} satisfies Record<string, (options: BenchOptions) => Promise<void>>;

async function withSettings(measure: (ours: readonly string[]) => Promise<void>): Promise<void> {
  using settings = settingsFile();
  await measure([...PROGRAM, "--config", settings.path]);
}

try {
  const options = parseOptions(Deno.args, Object.keys(PARTS) as (keyof typeof PARTS)[]);
  cancelOnSignals();
  for (const part of options.parts) await PARTS[part](options);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
Deno.exit(0);
