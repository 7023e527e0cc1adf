// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { cleanUpAll, haveWait, makeWarm, prepareAll } from "./machines.ts";
import { median, report, time } from "./measure.ts";
import { type Bar, barOf, phaseTable, type Steps, stepsOf } from "./phases.ts";
import { type BarGroup, plot } from "./plot.ts";
import { type Settings, settingsFile } from "../e2e/bed.ts";

const MACHINE = "gci-bench-warm";

const STARTS = ["cold", "warm", "standby"] as const;
/** A way to start a machine. */
export type Start = typeof STARTS[number];

/** What prepare says of each. */
export const SAYS: Readonly<Record<Start, RegExp>> = {
  cold: /^Started the machine /m,
  warm: /^Resumed the machine /m,
  standby: /^Using the standby machine /m,
};

/** What a prepare took, and in which steps. */
interface Run {
  readonly seconds: number;
  readonly steps: Steps;
  readonly isKvm: boolean;
}

/**
 * A whole prepare, until a command has run over SSH, of machines that are resumed and of those that
 * waited, beside one that boots each time. Then the steps of each.
 */
export async function measureWarm(
  program: readonly string[],
  { templates, runs, svg }: {
    readonly templates: readonly string[];
    readonly runs: number;
    /** The file that a plot of it is written to, if any. */
    readonly svg: string | undefined;
  },
): Promise<void> {
  const groups: BarGroup[] = [];
  let accelerator = "";
  for (const template of templates) {
    const measured = await measureTemplate(program, template, runs);
    accelerator = measured.cold.some(({ isKvm }) => isKvm) ? "with KVM" : "emulated";
    const bars = STARTS.map((start) => barOf(start, measured[start]));
    groups.push({ name: template, bars });
    reportAll(template, bars, measured);
  }
  if (svg === undefined) return;
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
  const programs = Object.fromEntries(STARTS.map((start) => {
    const { path } = files.use(settingsFile(settingsOf(start, template)));
    return [start, [...program, "--config", path]];
  })) as Record<Start, string[]>;
  const measured: Record<Start, Run[]> = { cold: [], warm: [], standby: [] };
  await using _ = await makeWarm(programs.warm, template);
  for (let i = 0; i < runs; i++) {
    for (const start of STARTS) measured[start].push(await measureOnce(start, template, programs));
  }
  return measured;
}

/** The settings by which a machine of the template starts so. */
export function settingsOf(start: Start, template: string): Settings {
  if (start !== "standby") return { start };
  const login = template === "lite" ? { ssh: { login: "template" } } : {};
  return { start: "warm", templates: { [template]: { ...login, standby: 1 } } };
}

async function measureOnce(
  start: Start,
  template: string,
  programs: Readonly<Record<Start, readonly string[]>>,
): Promise<Run> {
  await using undo = new AsyncDisposableStack();
  undo.defer(() => cleanUpAll(programs.cold, [MACHINE])); // with settings that have none wait
  if (start === "standby") undo.use(await haveWait(programs.standby));
  let output = "";
  const milliseconds = await time(async () => {
    output = (await prepareAll(programs[start], template, [MACHINE])).join();
  });
  assert.match(output, SAYS[start]);
  const isKvm = /\(kvm\)$/m.test(output);
  return { seconds: milliseconds / 1000, steps: stepsOf(output), isKvm };
}

function reportAll(
  template: string,
  bars: readonly Bar[],
  measured: Readonly<Record<Start, readonly Run[]>>,
): void {
  const secondsOf = (start: Start) => median(measured[start].map(({ seconds }) => seconds));
  const boots = secondsOf("cold");
  const reportOne = (start: Start, what: string, mostRatio: number, mostSeconds = Infinity) => {
    const seconds = secondsOf(start);
    const ratio = median(
      measured[start].map((run, i) => run.seconds / (measured.cold[i]?.seconds ?? NaN)),
    );
    report(
      `prepare of "${template}", ${what}`,
      `${seconds.toFixed(2)} s, of one that boots ${boots.toFixed(2)} s, ratio ${ratio.toFixed(2)}`,
      {
        goal: `${mostRatio}${mostSeconds < Infinity ? ` and ${mostSeconds} s` : ""}`,
        met: ratio <= mostRatio && seconds <= mostSeconds,
      },
    );
  };
  if (measured.cold.some(({ isKvm }) => isKvm)) reportOne("warm", "resumed", 0.1, 0.2);
  else reportOne("warm", "resumed", 0.3);
  reportOne("standby", "waiting", 0.08);
  console.log(phaseTable(bars));
}
