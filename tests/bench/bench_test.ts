// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { EMPTY_JOB, jobTable, stepsOfJob, timesOf } from "./job.ts";
import { withKsm } from "./ksm.ts";
import { type Bar, barOf, phaseTable, stepsOf } from "./phases.ts";
import { patched } from "./python_tool.ts";
import { SMALL_JOB } from "../harness/payload.ts";
import { runJob, runnerFor } from "../harness/runner.ts";

Deno.test("KSM's settings are as before it was measured, also if that fails", async () => {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const settings = { run: "0", pages_to_scan: "100", sleep_millisecs: "20" };
  const pages = {
    pages_sharing: "512",
    pages_shared: "2",
    pages_unshared: "4",
    pages_volatile: "6",
  };
  const files = { ...settings, ...pages };
  const write = (name: string, text: string) => Deno.writeTextFile(`${directory}/${name}`, text);
  try {
    for (const [name, text] of Object.entries(files)) await write(name, `${text}\n`);
    let scans = 0;
    const timer = setInterval(() => write("full_scans", String(scans += 8)), 300);
    try {
      await write("full_scans", "0");
      await assert.rejects(
        withKsm(async ({ savedMib, guestMib, isSettled }) => {
          assert.deepEqual([savedMib, guestMib, isSettled], [2, 524 / 256, true]);
          assert.equal(await Deno.readTextFile(`${directory}/run`), "1");
          throw new Error("on purpose");
        }, directory),
        /on purpose/,
      );
    } finally {
      clearInterval(timer);
    }
    for (const [name, text] of Object.entries(files)) {
      assert.equal((await Deno.readTextFile(`${directory}/${name}`)).trim(), text);
    }
    assert.equal(await withKsm(() => Promise.resolve(1), `${directory}/none`), null);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

const LOG = 'Started\nThe machine "m" is ready at 10.0.0.2 in 0.8 s (queue 9 ms, start 0.7 s)\n';

Deno.test("what prepare says of its steps becomes medians, a rest and a table", () => {
  const runs = [1, 3, 2].map((seconds) => ({ seconds, steps: stepsOf(LOG) }));
  const cold = barOf("cold", runs);
  assert.deepEqual([...cold.phases.keys()], ["queue", "start", "other"]);
  assert.equal(cold.seconds, 2);
  assert.equal(cold.phases.get("other")?.toFixed(3), "1.291");
  const phases = new Map([["queue", 0.1], ["RAM", 0.8], ["other", 0.1]]);
  const warm: Bar = { name: "warm", seconds: 1, phases };
  assert.deepEqual(phaseTable([cold, warm]).split("\n").slice(2), [
    "| queue | 0.01 | 0.10 |",
    "| start | 0.70 |  |",
    "| RAM |  | 0.80 |",
    "| other | 1.29 | 0.10 |",
    "| all | 2.00 | 1.00 |",
  ]);
});

Deno.test("a step that only some runs have is in its place among the steps of all", () => {
  const stepsWith = (...names: string[]) => new Map(names.map((name) => [name, 1]));
  const bar = barOf("cold", [
    { seconds: 4, steps: stepsWith("config", "start", "cleanup") },
    { seconds: 4, steps: stepsWith("config", "queue", "start", "cleanup") },
    { seconds: 4, steps: stepsWith("config", "queue", "start", "cleanup") },
  ]);
  assert.deepEqual([...bar.phases.keys()], ["config", "queue", "start", "cleanup", "other"]);
});

Deno.test("a job that was run becomes its phases in order, and what is compared of it", async () => {
  await using stack = new AsyncDisposableStack();
  const dir = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  stack.defer(() => Deno.remove(dir, { recursive: true }));
  const runner = runnerFor([], [], {
    configExec: ["true"],
    prepareExec: ["echo", LOG],
    runExec: ["bash"],
    cleanupExec: ["true"],
    buildsDir: `${dir}/builds`,
    cacheDir: `${dir}/cache`,
  });
  const { verdict, stages, logText } = await runJob(runner, { ...SMALL_JOB, ...EMPTY_JOB });
  assert.equal(verdict, "success", logText);
  assert.equal(stages.length, 8 + 3);
  const steps = stepsOfJob(stages);
  const names = ["config", "queue", "start", "rest of prepare", "scripts", "cleanup"];
  assert.deepEqual([...steps.keys()], names);
  const sum = stages.slice(2, -1).reduce((all, { seconds }) => all + seconds, 0);
  assert.equal(steps.get("scripts"), sum);
  const { prepare, cleanup } = timesOf({ stages, seconds: 1 });
  assert.deepEqual([prepare, cleanup], [stages[1]?.seconds, stages.at(-1)?.seconds]);
  assert.deepEqual(Object.keys(timesOf({ stages: stages.slice(2, -1), seconds: 1 })), ["a script"]);
});

Deno.test("jobs are compared turn by turn, as far as both have it", () => {
  const jobs = (...all: [script: number, whole?: number][]) =>
    all.map(([script, whole = NaN]) => ({ "a script": script, "whole job": whole }));
  const rows = jobTable(
    new Map([
      ["the Python tool", jobs([1, 10], [1, 20], [1, 40])],
      ["a loop of `ssh`", jobs([2], [2], [2])],
      ["libvirt-gci, booted", jobs([1, 10], [1, 10], [1, 30])],
    ]),
  );
  assert.deepEqual(rows.split("\n").slice(2), [
    "| the Python tool |  | 1.00 |  | 20.00 |",
    "| a loop of `ssh` |  | 2.00 |  |  |",
    "| libvirt-gci, booted |  | 1.00 |  | 10.00 |",
    "| ratio to the Python tool |  | 1.00 |  | 0.75 |",
    "| ratio to a loop of `ssh` |  | 0.50 |  |  |",
  ]);
});

Deno.test("what the Python tool has fixed is replaced, or another version of it refused", () => {
  assert.equal(patched("a.py", '"--vcpus", "4"', [['"4"', '"$&"']]), '"--vcpus", "$&"');
  for (const text of ["", '"4" "4"']) {
    assert.throws(() => patched("a.py", text, [['"4"', '"1"']]), /"a.py" has "4" [02] times/);
  }
});
