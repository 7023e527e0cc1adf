// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import {
  command,
  e2eTest,
  job,
  prepared,
  PROGRAM,
  type Settings,
  settingsFile,
  until,
  virsh,
} from "./bed.ts";
import type { Job } from "../harness/payload.ts";
import { runnerFor } from "../harness/runner.ts";
import { type RunnerProcess, startRunnerProcess } from "../harness/runner_process.ts";

/** A runner in a process of its own, which a test ends. */
interface StartedRunner extends AsyncDisposable {
  readonly runner: RunnerProcess;
  /** Ends it, and resolves when no stage of its job is left. */
  readonly endBy: (signal: "SIGTERM" | "SIGKILL") => Promise<void>;
}

const SLEEP = "sleep 5001";

const NAMESPACE = "urn:libvirt-gci:machine:1";

/** Starts it with a job whose script does not end, unless the job is another. */
async function startRunner(
  id: number,
  settings: Settings = {},
  differences: Partial<Job> = {},
): Promise<StartedRunner> {
  await using undo = new AsyncDisposableStack();
  const file = undo.use(settingsFile(settings));
  const tmpdir = await Deno.makeTempDir({ prefix: "libvirt-gci-e2e-" });
  undo.defer(() => Deno.remove(tmpdir, { recursive: true }));
  const gitlabRunner = runnerFor(PROGRAM, ["--config", file.path], { tmpdir, shutdownSeconds: 1 });
  const script = ["echo running", SLEEP];
  const runner = undo.use(startRunnerProcess(gitlabRunner, job({ id, script, ...differences })));
  const rest = undo.move();
  const isGone = async () => (await command(["pgrep", "-f", file.path])).status !== 0;
  return {
    runner,
    endBy: async (signal) => {
      await runner.end(signal);
      await until(isGone, { what: "no stage is left" });
    },
    [Symbol.asyncDispose]: () => rest.disposeAsync(),
  };
}

e2eTest("a prepare whose runner is gone while its machine boots removes all of it", async () => {
  await using started = await startRunner(81);
  await started.runner.printed(/Started the machine/);
  await started.endBy("SIGKILL");
});

e2eTest(
  "a prepare that waits for room starts no machine when its runner has left",
  async () => {
    const first = await prepared("gci-e2e-first");
    try {
      await using started = await startRunner(82, { host: { max_machines: 1 } });
      await started.runner.printed(/^Waiting for a machine to end \(1 of 1 machine run\)$/m);
      await started.endBy("SIGTERM");
    } finally {
      await first[Symbol.asyncDispose]();
    }
    assert.doesNotMatch(await virsh("list", "--name"), /gitlab-proj-82-/);
  },
  { thorough: true },
);

async function machineOfJob(id: number): Promise<string> {
  const names = await virsh("list", "--name");
  return names.match(new RegExp(`gitlab-proj-${id}-\\S+`))?.[0] ?? "";
}

e2eTest("a script ends in the guest when its runner is gone, and gc removes the rest", async () => {
  let machine = "";
  {
    await using started = await startRunner(83);
    await started.runner.printed(/^running/m);
    machine = await machineOfJob(83);
    await started.endBy("SIGKILL");
    using file = settingsFile();
    const find = ["run", "-m", machine, "--", "pgrep", "-cxf", SLEEP];
    const found = await command([...PROGRAM, "--config", file.path, ...find]);
    assert.match(found.stdout, /^0$/m, found.stderr);
  } // with which the attempt's directory goes
  using file = settingsFile();
  const { stdout } = await command([...PROGRAM, "--config", file.path, "gc"]);
  assert.match(stdout, new RegExp(`^Removed "${machine}" `, "m"));
}, { thorough: true });

e2eTest(
  "a machine that its job's log says is kept outlives its runner, until that time",
  async () => {
    let machine = "";
    {
      const failing = { script: ["exit 1"], afterScript: ["echo running", SLEEP] };
      await using started = await startRunner(84, { keep_minutes: 60 }, failing);
      await started.runner.printed(/^running/m);
      machine = await machineOfJob(84);
      await started.endBy("SIGKILL");
    }
    using file = settingsFile();
    const callWith = (...args: string[]) => command([...PROGRAM, "--config", file.path, ...args]);
    try {
      assert.doesNotMatch((await callWith("gc")).stdout, new RegExp(machine));
      const element = await virsh("metadata", machine, NAMESPACE);
      assert.match(element, /promisedUntil="20/);
      const over = element.replace(
        /promisedUntil="[^"]*"/,
        'promisedUntil="2026-01-02T03:04:05.678Z"',
      );
      await virsh("metadata", machine, NAMESPACE, "--key", "gci", "--set", over, "--live");
      assert.match((await callWith("gc")).stdout, new RegExp(`^Removed "${machine}" `, "m"));
    } finally {
      await callWith("cleanup", "-m", machine);
    }
  },
  { thorough: true },
);
