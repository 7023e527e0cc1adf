// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { type Settings, settingsFile } from "../e2e/bed.ts";
import { cleanUpAll, makeWarm, prepareAll } from "./machines.ts";
import { median, report, time } from "./measure.ts";
import { type Bar, barOf, phaseTable, type Steps, stepsOf } from "./phases.ts";
import { type BarGroup, plot } from "./plot.ts";

const MACHINE = "gci-bench-warm";

/** The ways to start a machine, each with its settings and with what prepare says of it. */
const STARTS = {
  cold: { settings: { start: "cold" }, says: /^Started the machine /m },
  warm: { settings: { start: "warm" }, says: /^Resumed the machine /m },
} as const satisfies Record<string, { readonly settings: Settings; readonly says: RegExp }>;

type Start = keyof typeof STARTS;
const NAMES = Object.keys(STARTS) as Start[];

/** What a prepare took, and in which steps. */
interface Run {
  readonly seconds: number;
  readonly steps: Steps;
  readonly isKvm: boolean;
}

/**
 * A whole prepare, until a command has run over SSH, of machines that are resumed, beside one that
 * boots each time. Then the steps of each.
 */
export async function measureWarm(
  program: readonly string[],
  { templates, runs, svg }: {
    readonly templates: readonly string[];
    readonly runs: number;
    /** The file that a plot of it is written to, if any. */
    readonly svg: string | null;
  },
): Promise<void> {
  const groups: BarGroup[] = [];
  let accelerator = "";
  for (const template of templates) {
    const measured = await measureTemplate(program, template, runs);
    accelerator = measured.cold.some(({ isKvm }) => isKvm) ? "with KVM" : "emulated";
    const bars = NAMES.map((start) => barOf(start, measured[start]));
    groups.push({ name: template, bars });
    reportAll(template, bars, measured);
  }
  if (svg === null) return;
  const times = groups.map(({ name, bars }) =>
    `${name}: ${bars.map((bar) => `${bar.name} ${bar.seconds.toFixed(2)} s`).join(", ")}`
  );
  await Deno.writeTextFile(
    svg,
    plot(groups, {
      title: `prepare, until a command has run over SSH (${accelerator}, medians of ${runs})`,
      description: times.join("; "),
    }),
  );
}

async function measureTemplate(
  program: readonly string[],
  template: string,
  runs: number,
): Promise<Record<Start, Run[]>> {
  using files = new DisposableStack();
  const programOf = (start: Start): readonly string[] => {
    const file = files.use(settingsFile(STARTS[start].settings));
    return [...program, "--config", file.path];
  };
  const programs = { cold: programOf("cold"), warm: programOf("warm") };
  const measured: Record<Start, Run[]> = { cold: [], warm: [] };
  await using _ = await makeWarm(programs.warm, template);
  for (let i = 0; i < runs; i++) {
    for (const start of NAMES) measured[start].push(await measureOnce(start, template, programs));
  }
  return measured;
}

async function measureOnce(
  start: Start,
  template: string,
  programs: Readonly<Record<Start, readonly string[]>>,
): Promise<Run> {
  try {
    let output = "";
    const milliseconds = await time(async () => {
      output = (await prepareAll(programs[start], template, [MACHINE])).join();
    });
    assert.match(output, STARTS[start].says);
    const isKvm = /\(kvm\)$/m.test(output);
    return { seconds: milliseconds / 1000, steps: stepsOf(output), isKvm };
  } finally {
    await cleanUpAll(programs.cold, [MACHINE]);
  }
}

function reportAll(
  template: string,
  bars: readonly Bar[],
  measured: Readonly<Record<Start, readonly Run[]>>,
): void {
  const [cold, warm] = bars;
  const ratio = ratioOf(measured.warm, measured.cold);
  const seconds = warm?.seconds ?? NaN;
  report(
    `prepare of a resumed "${template}"`,
    `${seconds.toFixed(2)} s, of one that boots ${cold?.seconds.toFixed(2)} s, ` +
      `ratio ${ratio.toFixed(2)}`,
    measured.cold.some(({ isKvm }) => isKvm)
      ? { goal: "0.1 and 0.2 s", met: ratio <= 0.1 && seconds <= 0.2 }
      : { goal: "0.3", met: ratio <= 0.3 },
  );
  console.log(phaseTable(bars));
}

/** The median of the ratios of runs that followed each other. */
function ratioOf(runs: readonly Run[], others: readonly Run[]): number {
  return median(runs.map(({ seconds }, i) => seconds / (others[i]?.seconds ?? NaN)));
}
