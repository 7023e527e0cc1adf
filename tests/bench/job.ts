// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { execScript } from "../../src/shell.ts";
import { cleanUpAll, haveWait, makeWarm, openSshTo, prepareAll } from "./machines.ts";
import { median, report, table } from "./measure.ts";
import { barOf, type Steps, stepsOf } from "./phases.ts";
import { plot } from "./plot.ts";
import { interrupted } from "./program.ts";
import { PYTHON_ADVICE, pythonTool } from "./python_tool.ts";
import { SAYS, settingsOf, type Start } from "./warm.ts";
import { assertVerdict, job, KVM, type Settings, settingsFile } from "../e2e/bed.ts";
import type { Job } from "../harness/payload.ts";
import { runJob, type Runner, runnerFor, type StageRecord } from "../harness/runner.ts";

/** The one template of the test bed that lets the Python tool in. */
const TEMPLATE = "lite";
/** What each machine has, whoever makes it. */
const SIZE = { memory_mib: 512, vcpus: 1 };
const MACHINE = "gci-bench-job";
const SCRIPTS = 8;
/** With those that GitLab Runner adds, it has eight scripts, without a command of its own. */
export const EMPTY_JOB: Partial<Job> = {
  projectName: "bench",
  script: [],
  steps: { one: [], two: [], three: [] },
  afterScript: [],
};

const PYTHON = "the Python tool";
const SSH = "a loop of `ssh`";
const BOOTED = "libvirt-gci, booted";
const RESUMED = "libvirt-gci, resumed";
const STANDBY = "libvirt-gci, standby";
const REFILLED = "libvirt-gci, standby, while the next one starts";

/** With one machine at most, there is no room for the next standby machine until the job ends. */
const WAYS: Readonly<Record<string, { readonly start: Start; readonly settings?: Settings }>> = {
  [BOOTED]: { start: "cold" },
  [RESUMED]: { start: "warm" },
  [STANDBY]: { start: "standby", settings: { host: { max_machines: 1 } } },
  [REFILLED]: { start: "standby" },
};

const COLUMNS = ["prepare", "a script", "cleanup", "whole job"] as const;
type Column = typeof COLUMNS[number];

/** The most that each may be as a ratio to another. */
const GOALS: readonly (readonly [string, Column, other: string, most: number])[] = [
  [BOOTED, "whole job", PYTHON, 0.5],
  [RESUMED, "whole job", PYTHON, 0.35],
  [STANDBY, "whole job", PYTHON, 0.2],
  [BOOTED, "a script", SSH, 0.35],
  [BOOTED, "cleanup", PYTHON, 1],
];

/** Seconds of one job, as far as they are compared; a script is the median of all. */
type JobTimes = Partial<Record<Column, number>>;

/** The jobs of each way in which they are run, by its name. */
type ByName<T> = ReadonlyMap<string, readonly T[]>;

/** A job that was run. */
interface Run {
  readonly stages: readonly StageRecord[];
  readonly seconds: number;
}

/**
 * Whole jobs of empty scripts as GitLab Runner runs them, in turns: by the Python tool, if there is a
 * checkout of it, by a loop of `ssh` that has its machine already, and by libvirt-gci in each way.
 */
export async function measureJob(
  program: readonly string[],
  { runs, svg, python }: {
    readonly runs: number;
    /** The file that a plot of it is written to, if any. */
    readonly svg: string | undefined;
    /** The checkout of the Python tool, if any. */
    readonly python: string | undefined;
  },
): Promise<void> {
  await using stack = new AsyncDisposableStack();
  const tool = python === undefined ? null : stack.use(await pythonTool(python, SIZE));
  if (tool === null) console.log(`${PYTHON} is not measured: ${PYTHON_ADVICE}`);
  const programFor = (start: Start, settings: Settings = {}): string[] => {
    const file = settingsFile({ ...settingsOf(start, TEMPLATE), ...SIZE, ...settings });
    return [...program, "--config", stack.use(file).path];
  };
  const ways = Object.entries(WAYS).map(([name, { start, settings }]) => (
    { name, start, ours: programFor(start, settings) }
  ));
  const cold = programFor("cold");
  stack.use(await makeWarm(programFor("warm"), TEMPLATE));
  const found = new Map<string, Run[]>();
  const add = (name: string, run: Run) => found.set(name, [...found.get(name) ?? [], run]);
  for (let i = 0, id = 7000; i < runs; i++) {
    if (tool !== null) add(PYTHON, await runWhole(tool.runner, id++));
    add(SSH, await runBySsh(cold, id++));
    for (const { name, start, ours } of ways) add(name, await runOurs(ours, start, id++));
  }
  const times = new Map([...found].map(([name, all]) => [name, all.map(timesOf)]));
  console.log(jobTable(times));
  for (const [name, column, other, most] of GOALS.filter(([, , other]) => times.has(other))) {
    const ratio = medianOf(times, name, column, other);
    const measured = `ratio to ${other} ${ratio.toFixed(2)}`;
    report(`${column}, ${name}`, measured, { goal: String(most), met: ratio <= most });
  }
  if (svg !== undefined) await Deno.writeTextFile(svg, timeLine(found, runs));
}

/** A whole job. Throws if it fails, or its cleanup. */
async function runWhole(runner: Runner, id: number): Promise<Run> {
  interrupted.throwIfAborted();
  const start = performance.now();
  const result = await runJob(runner, job({ ...EMPTY_JOB, id }), { runnerStop: interrupted });
  const seconds = (performance.now() - start) / 1000;
  interrupted.throwIfAborted();
  assertVerdict(result, "success");
  const failed = result.stages.find(({ exitStatus }) => exitStatus !== 0);
  assert.equal(failed, undefined, failed && `${failed.name} failed: ${outputOf(failed)}`);
  assert.equal(result.stages.filter(isScript).length, SCRIPTS);
  return { stages: result.stages, seconds };
}

async function runOurs(ours: readonly string[], start: Start, id: number): Promise<Run> {
  await using _ = start === "standby" ? await haveWait(ours) : null;
  const run = await runWhole(runnerFor(ours, [], { attempts: 1 }), id);
  assert.match(run.stages.map(outputOf).join("\n"), SAYS[start]);
  return run;
}

/** The scripts alone, each by an `ssh` of its own, in a machine that prepare made and cleanup removes. */
async function runBySsh(ours: readonly string[], id: number): Promise<Run> {
  try {
    await prepareAll(ours, TEMPLATE, [MACHINE]);
    const ssh = execScript([...await openSshTo(MACHINE), "bash", "-s"]).trimEnd();
    const home = "/home/gitlab-runner";
    const runner = runnerFor([], [], {
      configExec: null,
      prepareExec: null,
      cleanupExec: null,
      runExec: ["sh", "-c", `${ssh} <"$0"`],
      buildsDir: `${home}/builds`,
      cacheDir: `${home}/cache`,
    });
    return await runWhole(runner, id);
  } finally {
    await cleanUpAll(ours, [MACHINE]);
  }
}

function isScript({ name }: StageRecord): boolean {
  return !["config", "prepare", "cleanup"].includes(name);
}

function outputOf({ stdout, stderr }: StageRecord): string {
  return new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
}

/** What is compared of a job. Without prepare and cleanup, it is no whole job. */
export function timesOf({ stages, seconds }: Run): JobTimes {
  const script = median(stages.filter(isScript).map((stage) => stage.seconds));
  const of = (name: string) => stages.find((stage) => stage.name === name)?.seconds;
  const [prepare, cleanup] = [of("prepare"), of("cleanup")];
  if (prepare === undefined || cleanup === undefined) return { "a script": script };
  return { prepare, "a script": script, cleanup, "whole job": seconds };
}

/** The medians by column, and those of libvirt-gci's ratios to the others, turn by turn. */
export function jobTable(times: ByName<JobTimes>): string {
  const row = (name: string, valueOf: (column: Column) => number) => [
    name,
    ...COLUMNS.map(valueOf).map((value) => Number.isNaN(value) ? "" : value.toFixed(2)),
  ];
  const rows = [...times.keys()].flatMap((name) => [
    row(name, (column) => medianOf(times, name, column)),
    ...[PYTHON, SSH].filter((other) => name in WAYS && times.has(other)).map((other) =>
      row(`ratio to ${other}`, (column) => medianOf(times, name, column, other))
    ),
  ]);
  return table([["seconds", ...COLUMNS], ...rows]);
}

/** The median of the column, or of its ratios to that of another. NaN if there is none. */
function medianOf(times: ByName<JobTimes>, name: string, column: Column, other?: string): number {
  const own = (times.get(name) ?? []).map((each) => each[column] ?? NaN);
  if (other === undefined) return median(own);
  const others = times.get(other) ?? [];
  return median(own.map((seconds, i) => seconds / (others[i]?.[column] ?? NaN)));
}

/** The phases of a job of ours in their order, with the steps of prepare and what it takes besides. */
export function stepsOfJob(stages: readonly StageRecord[]): Steps {
  return new Map(stages.flatMap((stage): [string, number][] => {
    if (isScript(stage)) return [];
    if (stage.name !== "prepare") return [[stage.name, stage.seconds]];
    const steps = [...stepsOf(outputOf(stage))];
    const rest = steps.reduce((left, [, seconds]) => left - seconds, stage.seconds);
    const scripts = stages.filter(isScript).reduce((sum, { seconds }) => sum + seconds, 0);
    return [...steps, ["rest of prepare", Math.max(0, rest)], ["scripts", scripts]];
  }));
}

function timeLine(found: ByName<Run>, runs: number): string {
  const bars = [BOOTED, RESUMED, STANDBY].map((name) => {
    const all = found.get(name) ?? [];
    const jobs = all.map(({ stages, seconds }) => ({ seconds, steps: stepsOfJob(stages) }));
    return barOf(WAYS[name]?.start ?? name, jobs);
  });
  const host = KVM.works === true ? "with KVM" : "emulated";
  return plot([{ name: TEMPLATE, bars }], {
    title: `A job of ${SCRIPTS} empty scripts, phase by phase (${host}, medians of ${runs})`,
    description: bars.map(({ name, seconds }) => `${name} ${seconds.toFixed(2)} s`).join("; "),
  });
}
