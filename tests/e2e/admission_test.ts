// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { ListedMachine } from "../../src/commands/list.ts";
import { allOf, sleep } from "../../src/wait.ts";
import {
  assertVerdict,
  atMost,
  call,
  command,
  e2eTest,
  job,
  letGo,
  PROGRAM,
  runningMachine,
  runOnBed,
  type Settings,
  settingsFile,
  TESTBED,
  until,
  UNTIL_LET_GO,
  virsh,
} from "./bed.ts";
import { type JobResult, runnerFor } from "../harness/runner.ts";
import { startRunnerProcess } from "../harness/runner_process.ts";

/** A prepare that goes on beside the test. */
interface Preparing {
  readonly process: Deno.ChildProcess;
  /** What it printed so far, on both streams. */
  readonly text: () => string;
  /** Resolves once it has said so. */
  readonly said: (words: RegExp) => Promise<void>;
}

function startPrepare(machine: string, settings: string): Preparing {
  const [program = "", ...args] = [...PROGRAM, "--config", settings];
  const process = new Deno.Command(program, {
    args: [...args, "prepare", "--distro", "lite", "--machine", machine],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  let text = "";
  const read = async (stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<void> => {
    for await (const part of stream.pipeThrough(new TextDecoderStream())) text += part;
  };
  read(process.stdout);
  read(process.stderr);
  const said = async (words: RegExp): Promise<void> => {
    await until(() => words.test(text), { what: `it says ${words}`, instead: () => text });
  };
  return { process, text: () => text, said };
}

async function cleanUp(...machines: string[]): Promise<void> {
  for (const machine of machines) {
    const { status, stderr } = await call(["cleanup", "--machine", machine]);
    assert.equal(status, 0, stderr);
  }
}

async function statesOf(...machines: string[]): Promise<(string | undefined)[]> {
  const all: ListedMachine[] = JSON.parse((await call(["list", "--json"])).stdout);
  return machines.map((name) => all.find(({ machine }) => machine === name)?.state);
}

/** The files of the queue's entries. */
async function queueEntries(): Promise<string[]> {
  return (await virsh("vol-list", TESTBED.overlayPool)).match(/\/\S+\.queue\.libvirt-gci/g) ?? [];
}

e2eTest(
  "machines start in turn, and one that is killed while it waits holds up nobody",
  async () => {
    const [a, b, c, d] = ["gci-e2e-turn-a", "gci-e2e-turn-b", "gci-e2e-turn-c", "gci-e2e-turn-d"];
    using file = settingsFile({ host: { max_machines: 1 } });
    await using undo = new AsyncDisposableStack();
    undo.defer(() => cleanUp(a, b, c, d));

    const first = startPrepare(a, file.path);
    await first.said(/Started the machine/);
    const second = startPrepare(b, file.path);
    await second.said(/^Waiting for a machine to end \(1 of 1 machine run\)$/m);
    const third = startPrepare(c, file.path);
    await third.said(/^Waiting for a machine to end, 1 job ahead \(1 of 1 machine run\)$/m);
    const fourth = startPrepare(d, file.path);
    await fourth.said(/^Waiting for a machine to end, 2 jobs ahead \(1 of 1 machine run\)$/m);
    assert.equal((await first.process.status).code, 0, first.text());
    assert.deepEqual(await statesOf(a, b, c, d), ["ready", "waiting", "waiting", "waiting"]);

    second.process.kill("SIGKILL");
    await second.process.status;
    await third.said(/^Waiting for a machine to end \(1 of 1 machine run\)$/m);
    third.process.kill("SIGTERM");
    assert.equal((await third.process.status).code, 2, third.text());
    await fourth.said(/^Waiting for a machine to end \(1 of 1 machine run\)$/m);
    assert.equal((await queueEntries()).length, 1);
    assert.doesNotMatch(await virsh("vol-list", TESTBED.overlayPool), new RegExp(c));

    await cleanUp(a);
    await fourth.said(/Started the machine/);
    assert.deepEqual(await queueEntries(), []);
    assert.equal((await fourth.process.status).code, 0, fourth.text());
  },
);

e2eTest(
  "a machine that waits too long is the host's fault, and the log says for what",
  async () => {
    const [a, b] = ["gci-e2e-turn-a", "gci-e2e-turn-b"];
    await using undo = new AsyncDisposableStack();
    undo.defer(() => cleanUp(a));
    assert.equal((await call(["prepare", "-d", "lite", "-m", a])).status, 0);
    const settings = { host: { max_machines: 1, queue_seconds: 2 } };
    const waited = await call(["prepare", "-d", "lite", "-m", b], { settings });
    assert.equal(waited.status, 2);
    assert.match(waited.stdout, /^Waiting for a machine to end \(1 of 1 machine run\)$/m);
    assert.match(
      waited.stderr,
      /did not leave the queue within 2 s: it waits for a machine to end/,
    );
    assert.doesNotMatch(await virsh("vol-list", TESTBED.overlayPool), new RegExp(b));
  },
  { thorough: true },
);

e2eTest("memory is waited for while the host could have it, and not if it never can", async () => {
  const total = Number((await virsh("nodememstats")).match(/total\s*:\s*(\d+)/)?.[1]) / 1024;
  const prepare = async (settings: Settings) =>
    await call(["prepare", "-d", "lite", "-m", "gci-e2e-turn"], { settings });
  const never = await prepare({ host: { reserve_memory_mib: Math.ceil(total) - 511 } });
  assert.equal(never.status, 2);
  assert.match(
    never.stderr,
    /can never start, because the host lacks 512 MiB of memory: the host has \d+ MiB, of which/,
  );
  const wait = { host: { reserve_memory_mib: Math.floor(total) - 512, queue_seconds: 1 } };
  const waited = await prepare(wait);
  assert.equal(waited.status, 2);
  assert.match(waited.stdout, /^Waiting for 512 MiB of memory \(\d+ MiB are free\)$/m);
  const full = await prepare({ host: { reserve_disk_gib: 65_536 } });
  assert.equal(full.status, 2);
  assert.match(
    full.stderr,
    /can never start, because the host lacks space .*: [\d.]+ of [\d.]+ GiB are free, and no machine/,
  );
});

e2eTest("what a machine was promised and has not used yet is not there for another", async () => {
  const total = Number((await virsh("nodememstats")).match(/total\s*:\s*(\d+)/)?.[1]) / 1024;
  const giant = Math.floor(total / 2);
  const machine = "gci-e2e-turn-giant";
  const settings = { memory_mib: giant, host: { reserve_memory_mib: 0, queue_seconds: 1 } };
  await using undo = new AsyncDisposableStack();
  undo.defer(() => cleanUp(machine));
  const prepared = await call(["prepare", "-d", "lite", "-m", machine], { settings });
  assert.equal(prepared.status, 0, prepared.stderr);
  const waited = await call(["prepare", "-d", "lite", "-m", "gci-e2e-turn"], { settings });
  assert.equal(waited.status, 2);
  assert.match(waited.stderr, new RegExp(`it waits for ${giant} MiB of memory`));
}, { thorough: true });

/** Runs a job of this project with at most one machine for each, and gives when its log says so. */
function startJob(
  { id, project, script }: { id: number; project: string; script: readonly string[] },
  { stage, says }: { stage: string; says: string },
): { readonly result: Promise<JobResult>; readonly said: Promise<unknown> } {
  const { promise, resolve } = Promise.withResolvers<void>();
  const result = runOnBed(job({ id, projectFullPath: project, script }), {
    settings: { rules: [{ max_machines: 1 }] },
    events: [{ stage, whenOutput: says, action: () => resolve() }],
  });
  result.catch(() => {}); // the test looks at it later
  return { result, said: Promise.race([promise, result]) };
}

e2eTest("two jobs of one project take turns, and one of another is not held up", async () => {
  const running = { stage: "build_script", says: "\nhere" };
  const first = startJob({ id: 91, project: "a/b", script: ["echo here", UNTIL_LET_GO] }, running);
  await first.said;
  const machine = await runningMachine("gitlab-proj-91-");
  const wait = "Waiting for a machine of its project to end (1 of 1 run)";
  const second = startJob({ id: 92, project: "a/b", script: ["echo in turn"] }, {
    stage: "prepare",
    says: wait,
  });
  try {
    await second.said;
    const waiting: ListedMachine[] = JSON.parse((await call(["list", "--json"])).stdout);
    const ofSecond = waiting.filter((it) => it.machine.startsWith("gitlab-proj-92-"));
    assert.deepEqual(ofSecond.map(({ state, project }) => [state, project]), [["waiting", "a/b"]]);

    const script = ["echo here"];
    const other = await startJob({ id: 93, project: "other/b", script }, running).result;
    assertVerdict(other, "success");
    assert.doesNotMatch(other.logText, /Waiting for a machine/);
    assert.doesNotMatch(await virsh("list", "--name"), /gitlab-proj-92-/);
  } finally {
    await letGo(machine);
    const [before, after] = await allOf([first.result, second.result]);
    assertVerdict(before, "success");
    assertVerdict(after, "success");
    const { logText } = after;
    assert(logText.indexOf(wait) < logText.indexOf("Started the machine"), logText);
    assert.match(logText, /^in turn$/m);
  }
}, { thorough: true });

e2eTest("a runner that is killed makes room for a job that waits", async () => {
  const settings = { host: { max_machines: 1, queue_seconds: atMost(20) } };
  using file = settingsFile(settings);
  const tmpdir = await Deno.makeTempDir({ prefix: "libvirt-gci-e2e-" });
  await using undo = new AsyncDisposableStack();
  undo.defer(() => Deno.remove(tmpdir, { recursive: true }));
  const killed = undo.use(startRunnerProcess(
    runnerFor(PROGRAM, ["--config", file.path], { tmpdir }),
    job({ id: 94, script: ["echo here", "while :; do sleep 1; done"] }),
  ));
  await killed.printed(/\nhere/);

  const result = await runOnBed(job({ id: 95, script: ["echo in turn"] }), {
    settings,
    events: [{
      stage: "prepare",
      whenOutput: "Waiting for a machine to end (1 of 1 machine run)",
      action: () => killed.end("SIGKILL"),
    }],
  });
  assertVerdict(result, "success");
  assert.match(result.logText, /^Removed a machine no longer needed$/m);
  const [attempt = ""] = [...Deno.readDirSync(tmpdir)].map(({ name }) => name);
  assert.match(attempt, /^custom-executor/); // which has not been removed
  const hasEnded = async () => (await command(["pgrep", "-f", file.path])).status !== 0;
  await until(hasEnded, { what: "the stage that the killed runner left has ended" });
  assert.equal((await call(["gc"])).status, 0);
}, { thorough: true });

const WORKERS = 10;
const ROUNDS = 8;

/** Reads what many workers told, and gives the most that had a place at the same time. */
function mostAtOnce(lines: readonly string[]): number {
  const holding = new Set<string>();
  let most = 0;
  for (const [who = "", what = ""] of lines.map((line) => line.split(" "))) {
    if (what === "gets") holding.add(who);
    else holding.delete(who);
    most = Math.max(most, holding.size);
  }
  return most;
}

for (const maxMachines of [1, 3]) {
  e2eTest(
    `of ${WORKERS} processes, some of them killed, ${maxMachines} have a turn at once`,
    async () => {
      const file = await Deno.makeTempFile({ prefix: "libvirt-gci-e2e-" });
      const workers = Array.from({ length: WORKERS }, (_, i) => {
        const program = new URL("queue_worker.ts", import.meta.url).pathname;
        const args = [`gci-e2e-worker-${i}`, String(ROUNDS), String(maxMachines), file];
        return new Deno.Command(Deno.execPath(), {
          args: ["run", "--allow-all", "--no-check", program, ...args],
          stdin: "null",
          stdout: "null",
          stderr: "inherit",
        }).spawn();
      });
      for (const worker of workers.slice(0, WORKERS / 2)) {
        await sleep(500 + Math.random() * 1000);
        // Written first, so that no process seems to have a turn that others saw end.
        Deno.writeTextFileSync(file, `${worker.pid} dies\n`, { append: true });
        try {
          worker.kill("SIGKILL");
        } catch { /* it was through */ }
      }
      const statuses = await Promise.all(workers.map(({ status }) => status));
      assert(statuses.slice(WORKERS / 2).every(({ success }) => success));
      const lines = (await Deno.readTextFile(file)).trim().split("\n");
      await Deno.remove(file);
      assert.equal(mostAtOnce(lines), maxMachines, lines.join("\n"));
      const numbers = lines.map((line) => Number(/gets (\d+)$/.exec(line)?.[1])).filter((n) => n);
      assert(numbers.length >= ROUNDS * WORKERS / 2);
      // Where there is one at a time, also in the order in which they came.
      if (maxMachines === 1) assert.deepEqual(numbers, numbers.toSorted((a, b) => a - b));
      assert.equal((await call(["gc"])).status, 0); // the last may have been killed when all were through
    },
    { thorough: true },
  );
}
