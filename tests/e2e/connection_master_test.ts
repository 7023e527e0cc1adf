// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import {
  assertVerdict,
  call,
  command,
  e2eTest,
  job,
  letGo,
  LOGINS,
  loginsIn,
  runningMachine,
  runOnBed,
  until,
  UNTIL_LET_GO,
} from "./bed.ts";
import { Attempt } from "./faults/matrix.ts";

/** Prints the process of the guest's SSH server that serves the connection of the script. */
const SSHD = "echo sshd:$(cut -d' ' -f4 /proc/$PPID/stat):";

/** A directory for a runner's attempts, removed when it is disposed of. */
async function tmpdirForRunner(): Promise<AsyncDisposable & { readonly path: string }> {
  const path = await Deno.makeTempDir({ prefix: "libvirt-gci-e2e-" });
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

/** The processes that listen at a connection master's socket below this directory. */
async function mastersBelow(directory: string): Promise<number[]> {
  const sockets = (await Deno.readTextFile("/proc/net/unix")).split("\n")
    .filter((line) => line.includes(` ${directory}/`))
    .map((line) => `socket:[${line.split(/ +/)[6]}]`);
  const { stdout } = await command(["pgrep", "-f", "connection-master$"]);
  const pids = (stdout.match(/\d+/g) ?? []).map(Number);
  return pids.filter((pid) => filesOf(pid).some((file) => sockets.includes(file)));
}

/** What the process has open; nothing if it has ended. */
function filesOf(pid: number): string[] {
  try {
    const directory = `/proc/${pid}/fd`;
    return [...Deno.readDirSync(directory)].map(({ name }) =>
      Deno.readLinkSync(`${directory}/${name}`)
    );
  } catch {
    return [];
  }
}

e2eTest("all scripts of a job go through one login, and nothing of it is left", async () => {
  await using tmpdir = await tmpdirForRunner();
  const running = runOnBed(
    job({ id: 91, script: [SSHD, UNTIL_LET_GO], afterScript: [SSHD] }),
    { runner: { tmpdir: tmpdir.path } },
  );
  running.catch(() => {});
  await until(async () => (await mastersBelow(tmpdir.path)).length === 1, {
    what: "there is a connection master",
  });
  const [pid = 0] = await mastersBelow(tmpdir.path);
  const variables = await Deno.readTextFile(`/proc/${pid}/environ`);
  assert.doesNotMatch(variables, /CUSTOM_ENV_|JOB_RESPONSE_FILE|LIBVIRT_GCI_MACHINE/);
  assert.equal(await Deno.readLink(`/proc/${pid}/cwd`), "/");
  await letGo(await runningMachine("gitlab-proj-91-"));
  const result = await running;
  assertVerdict(result, "success");
  const servers = [...result.logText.matchAll(/sshd:(\d+):/g)].map(([, number]) => number);
  assert.equal(servers.length, 2, result.logText);
  assert.equal(new Set(servers).size, 1, "its scripts had several connections");
  assert.deepEqual(filesOf(pid), [], "the connection master is left");
  assert.deepEqual([...Deno.readDirSync(tmpdir.path)], [], "something of the attempt is left");
});

e2eTest("a job logs in to a machine that boots for it once", async () => {
  const variables = [{ key: "DISTRO", value: "cloud" }];
  const result = await runOnBed(
    job({ id: 95, variables, script: [LOGINS], afterScript: [LOGINS] }),
  );
  assertVerdict(result, "success");
  assert.deepEqual(loginsIn(result.logText), [1, 1]);
});

e2eTest(
  "a job whose connection master is killed amid its script fails as the host's, and is never passed",
  async () => {
    await using tmpdir = await tmpdirForRunner();
    const running = runOnBed(
      job({ id: 92, script: ["echo begun", "sleep 5003"], afterScript: ["echo after it"] }),
      { runner: { tmpdir: tmpdir.path, attempts: 1 } },
    );
    running.catch(() => {});
    await until(async () => (await mastersBelow(tmpdir.path)).length === 1, {
      what: "there is a connection master",
    });
    const machine = await runningMachine("gitlab-proj-92-");
    const find = ["run", "-m", machine, "--", "pgrep", "-xf", "sleep 5003"];
    await until(async () => (await call(find)).status === 0, { what: "the script runs" });
    const [pid = 0] = await mastersBelow(tmpdir.path);
    Deno.kill(pid, "SIGKILL");
    const result = await running;
    assertVerdict(result, "runner_system_failure");
    assert.match(
      result.logText,
      /libvirt-gci: The connection to the guest broke while the script ran/,
    );
  },
  { thorough: true },
);

e2eTest(
  "scripts of a job go on by themselves where its connection master does not answer",
  async () => {
    using attempt = await Attempt.begin();
    try {
      await attempt.mustPrepare();
      const [pid = 0] = await mastersBelow(attempt.dir);
      Deno.kill(pid, "SIGSTOP");
      try {
        for (const word of ["one", "two"]) {
          const { status, stdout, stderr } = await attempt.run(`echo ${word}`);
          assert.deepEqual([status, stdout, stderr], [0, `${word}\n`, ""]);
        }
      } finally {
        Deno.kill(pid, "SIGKILL");
      }
    } finally {
      await attempt.cleanup();
      await attempt.end();
    }
  },
  { thorough: true },
);

/** More than an SSH server's sessions on one connection (MaxSessions, sshd_config(5)). */
const STEPS = 12;

e2eTest(
  "each of many scripts of a job may leave a process behind",
  async () => {
    const steps = Object.fromEntries(
      Array.from({ length: STEPS }, (_, i) => [`s${i}`, ["sleep 5004 &", `echo step:${i}:`]]),
    );
    const result = await runOnBed(job({ id: 94, steps }));
    assertVerdict(result, "success");
    const done = [...result.logText.matchAll(/step:(\d+):/g)].map(([, number]) => Number(number));
    assert.deepEqual(new Set(done).size, STEPS, result.logText);
  },
  { thorough: true },
);
