// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { ListedMachine } from "../../src/commands/list.ts";
import {
  assertVerdict,
  call,
  type Called,
  command,
  e2eTest,
  job,
  letGo,
  PROGRAM,
  runningMachine,
  runOnBed,
  settingsFile,
  TESTBED,
  until,
  UNTIL_LET_GO,
  virsh,
} from "./bed.ts";
import { responseJson } from "../harness/payload.ts";
import { runnerFor } from "../harness/runner.ts";
import { type RunnerProcess, startRunnerProcess } from "../harness/runner_process.ts";

async function gc(...args: string[]): Promise<Called> {
  const called = await call(["gc", ...args]);
  assert.equal(called.status, 0, called.stderr);
  return called;
}

/** The machines whose names begin like this, as `list` shows them. */
async function listed(start: string): Promise<ListedMachine[]> {
  const { status, stdout, stderr } = await call(["list", "--json"]);
  assert.equal(status, 0, stderr);
  const machines: ListedMachine[] = JSON.parse(stdout);
  return machines.filter(({ machine }) => machine.startsWith(start));
}

/** A directory for attempts, removed with what is in it when it is disposed of. */
function attemptsDirectory(): Disposable & { readonly path: string } {
  const path = Deno.makeTempDirSync({ prefix: "libvirt-gci-gc-" });
  return { path, [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }) };
}

/** Output that is read to its end, since its writer would fail at a closed pipe. */
interface Output {
  /** What came until the text did. */
  readonly said: string;
  /** Fulfilled when its last writer is gone. */
  readonly end: Promise<void>;
}

/** Reads until this text comes, and lets the rest go by. */
async function untilOutput(stream: ReadableStream<Uint8Array>, text: RegExp): Promise<Output> {
  const came = Promise.withResolvers<string>();
  const read = async () => {
    let said = "";
    for await (const part of stream.pipeThrough(new TextDecoderStream())) {
      said += part;
      if (text.test(said)) came.resolve(said);
    }
    came.reject(new Error(`it ended without ${text}: ${said}`));
  };
  const end = read();
  return { said: await came.promise, end };
}

/** Waits until no process has this in its command line. */
async function untilGone(pattern: string): Promise<void> {
  const isGone = async () => (await command(["pgrep", "-f", pattern])).status !== 0;
  await until(isGone, { what: `no process has ${pattern}` });
}

/** Runs a job whose script does not end in a runner of its own, until the script runs. */
async function startRunner(id: number, tmpdir: string, settings: string): Promise<RunnerProcess> {
  const script = ["echo running", "while :; do sleep 1; done"];
  const gitlabRunner = runnerFor(PROGRAM, ["--config", settings], { tmpdir });
  const runner = startRunnerProcess(gitlabRunner, job({ id, script }));
  await runner.printed(/\nrunning/);
  return runner;
}

e2eTest("a machine whose runner was killed is removed, and the job beside it runs on", async () => {
  const { promise: here, resolve } = Promise.withResolvers<void>();
  const beside = runOnBed(job({ id: 77, script: ["echo here", UNTIL_LET_GO, "echo end"] }), {
    events: [{ stage: "build_script", whenOutput: "\nhere", action: () => resolve() }],
  });
  const attempts = attemptsDirectory();
  using file = settingsFile();
  await using runner = await startRunner(78, attempts.path, file.path);
  await here;
  const other = await runningMachine("gitlab-proj-77-");
  try {
    const machine = await runningMachine("gitlab-proj-78-");
    await gc();
    assert.equal((await listed(machine))[0]?.state, "ready");

    await runner.end("SIGKILL");
    const [orphan] = await listed(machine);
    // It would say so if the attempt's directory were gone too.
    assert.deepEqual([orphan?.state, orphan?.why], ["orphan", "its runner has ended"]);
    const what = `"${machine}" \\(domain, 3 volumes, network filter\\): its runner has ended`;
    assert.match((await gc("--dry-run")).stdout, new RegExp(`^Would remove ${what}$`, "m"));
    assert.match((await gc()).stdout, new RegExp(`^Removed ${what}$`, "m"));
    assert.deepEqual(await listed(machine), []);
    assert.equal((await listed(other))[0]?.state, "ready");
    await untilGone(file.path); // the stage that its runner left behind
    attempts[Symbol.dispose]();
  } finally {
    await letGo(other);
    const result = await beside;
    assertVerdict(result, "success");
    assert.match(result.logText, /\nend\n/);
  }
});

/** The call by which prepare makes the machine's first volume, after it looked at those of others. */
const CLAIM = "virStorageVolCreateXML";

/** Calls of libvirt after which prepare is killed, with how often they come from {@linkcode CLAIM} on. */
const POINTS: readonly (readonly [call: string, count: number])[] = [
  ["virStorageVolCreateXML", 1],
  ["virStorageVolUpload", 1],
  ["virStreamFinish", 1],
  ["virStorageVolCreateXML", 2],
  ["virConnectGetAllDomainStats", 1],
  ["virStorageVolCreateXML", 3],
  ["virStorageVolCreateXML", 4],
  ["virNWFilterDefineXML", 1],
  ["virDomainCreateXML", 1],
  ["virStorageVolDelete", 1],
  ["virNetworkGetDHCPLeases", 6], // while libvirt sets the filter
];

/**
 * Starts prepare as a runner in a process of its own does, kills both at this point, and gives what
 * prepare said until then.
 */
async function killPrepare(
  [name, count]: typeof POINTS[number],
  { attempt, settings, id }: {
    readonly attempt: string;
    readonly settings: string;
    readonly id: number;
  },
): Promise<string> {
  await Deno.mkdir(attempt);
  await Deno.writeTextFile(`${attempt}/response.json`, responseJson(job({ id })));
  const program = [...PROGRAM, "--config", settings, "--debug", "prepare"];
  const runner = new Deno.Command("bash", {
    args: ["-c", '"$@"; :', "runner", ...program],
    env: { JOB_RESPONSE_FILE: `${attempt}/response.json`, CUSTOM_ENV_DISTRO: "lite" },
    detached: true,
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const more = name === CLAIM ? count - 1 : count;
  const point = new RegExp(`debug: ${CLAIM} [^]*(debug: ${name} [^]*){${more}}`);
  const { said, end } = await untilOutput(runner.stderr, point);
  Deno.kill(-runner.pid, "SIGKILL");
  await Promise.all([runner.status, end]);
  return said;
}

for (const point of POINTS) {
  e2eTest(`what prepare left is removed that was killed after ${point.join(" ")}`, async () => {
    using attempts = attemptsDirectory();
    using file = settingsFile();
    const attempt = `${attempts.path}/1`;
    const id = 1000 + POINTS.indexOf(point);
    const said = await killPrepare(point, { attempt, settings: file.path, id });
    const { stdout, stderr } = await gc();
    const [machine, ...others] = await listed(`gitlab-proj-${id}-`);
    assert(machine, `gc removed what is needed: ${stdout}${stderr}\nprepare said: ${said}`);
    assert.deepEqual(others, []);
    await Deno.remove(attempt, { recursive: true });
    await ageOwner(machine.machine);
    assert.match((await gc()).stdout, new RegExp(`Removed "${machine.machine}" `));
    assert.deepEqual(await listed(`gitlab-proj-${id}-`), []);
  });
}

/** Makes the owner's volume look old: one that is half made counts for ten minutes. */
async function ageOwner(machine: string): Promise<void> {
  await makeOld(await ownerPath(machine));
}

/** Makes a file look 20 minutes old. */
async function makeOld(path: string): Promise<void> {
  const time = Date.now() / 1000 - 1200;
  await Deno.utime(path, time, time);
}

function ownerPath(machine: string): Promise<string> {
  return virsh("vol-path", "--pool", TESTBED.overlayPool, `${machine}.owner.libvirt-gci`);
}

e2eTest("an owner's volume that is empty counts for ten minutes", async () => {
  const volume = "gci-e2e-half.owner.libvirt-gci";
  await virsh("vol-create-as", TESTBED.overlayPool, volume, "400");
  await gc();
  assert.equal((await listed("gci-e2e-half"))[0]?.state, "starting");
  await ageOwner("gci-e2e-half");
  assert.match(
    (await gc()).stdout,
    /"gci-e2e-half" \(1 volume\): prepare was killed while creating it/,
  );
});

e2eTest("a filter without a machine is removed, and nobody else's", async () => {
  for (const name of ["libvirt-gci-gci-e2e-trace", "gci-e2e-theirs"]) {
    const xml = Deno.makeTempFileSync({ prefix: "libvirt-gci-e2e-" });
    Deno.writeTextFileSync(xml, `<filter name="${name}" chain="root"/>`);
    await virsh("nwfilter-define", xml);
    Deno.removeSync(xml);
  }
  assert.match((await gc()).stdout, /Removed "gci-e2e-trace" \(network filter\)/);
  const filters = await virsh("nwfilter-list");
  assert.doesNotMatch(filters, /gci-e2e-trace/);
  assert.match(filters, /gci-e2e-theirs/);
  await virsh("nwfilter-undefine", "gci-e2e-theirs");
});

e2eTest(
  "what cannot be removed is said, and the rest is removed, by four gcs at once",
  async () => {
    const pool = (await virsh("pool-dumpxml", TESTBED.overlayPool)).match(/<path>(.*)<\/path>/)
      ?.[1];
    const stuck = `${pool}/gci-e2e-stuck.seed.libvirt-gci`;
    await Deno.mkdir(`${stuck}/full`, { recursive: true });
    await makeOld(stuck);
    for (let i = 0; i < 9; i++) {
      const file = `${pool}/gci-e2e-${i}.credential.libvirt-gci`;
      await Deno.writeTextFile(file, "x");
      if (i < 8) await makeOld(file);
    }
    try {
      const called = await Promise.all([1, 2, 3, 4].map(() => call(["gc"])));
      for (const { status, stderr } of called) {
        assert.equal(status, 2, stderr);
        assert.match(stderr, /Cannot remove a machine no longer needed/);
        assert.match(stderr, /gci-e2e-stuck\.seed\.libvirt-gci/);
      }
      assert.equal((await listed("gci-e2e-stuck"))[0]?.state, "leftover");
      for (let i = 0; i < 8; i++) assert.deepEqual(await listed(`gci-e2e-${i}`), []);
      assert.equal((await listed("gci-e2e-8"))[0]?.state, "starting"); // since its file is young
    } finally {
      await Deno.remove(`${pool}/gci-e2e-8.credential.libvirt-gci`);
      await Deno.remove(stuck, { recursive: true });
    }
  },
);

e2eTest(
  "a person's machine is left until --older-than, also if only its disks are left",
  async () => {
    const machine = "gci-e2e-old";
    const prepared = await call(["prepare", "-d", "lite", "-m", machine]);
    assert.equal(prepared.status, 0, prepared.stderr);
    const refused = await call(["cleanup", "--all"]);
    assert.equal(refused.status, 2);
    assert.match(refused.stderr, /Remove .* machines?.*\? There is no terminal to ask on/);

    await virsh("destroy", machine);
    const path = await ownerPath(machine);
    const owner = JSON.parse(await Deno.readTextFile(path));
    await Deno.writeTextFile(path, JSON.stringify({ ...owner, created: "2000-01-01T00:00:00Z" }));
    await gc();
    const states = (await listed(machine)).map(({ job, state }) => [job, state]);
    assert.deepEqual(states, [["", "leftover"]]);
    const { stdout } = await gc("--older-than", "5000d"); // longer ago than any other test's
    const what = `"${machine}" \\(3 volumes, network filter\\): it was created \\d+ d ago`;
    assert.match(stdout, new RegExp(`^Removed ${what}$`, "m"));
  },
  { thorough: true },
);
