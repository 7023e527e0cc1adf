// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { masterVariables } from "../../src/cli/background.ts";
import { gc } from "../../src/commands/gc.ts";
import { explain, faultOf, SystemFailure } from "../../src/errors.ts";
import { findMaster } from "../../src/guest/master/client.ts";
import { controlSocket } from "../../src/guest/master/control_socket.ts";
import type { StartMaster } from "../../src/guest/master/new_master.ts";
import { SshConnection } from "../../src/guest/ssh_connection.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { MASTER_MIB, masterTask } from "../../src/machine/connection_master.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { entriesIn } from "../../src/machine/queue/queue.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { TestGuest, type TestGuestOptions } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import { isThere, loginTo, makeAttemptDir, spawnMaster } from "../fakes/test_master.ts";
import {
  changeMetadata,
  JOB,
  script,
  type TestStage,
  testStage,
  type TestStageOptions,
  toStage,
} from "../fakes/test_stage.ts";

interface Bed {
  readonly connection: Connection;
  readonly guest: TestGuest;
  readonly stage: TestStage;
  readonly directory: string;
  readonly socket: string;
  readonly startMaster: StartMaster;
  /** The processes that were started. */
  readonly children: Deno.ChildProcess[];
}

/** Gives the test a job in an attempt's directory, and sees that neither a process nor a socket is left. */
async function withAttempt(
  test: (bed: Bed) => Promise<void>,
  { guest: options, ...stageOptions }: TestStageOptions & { readonly guest?: TestGuestOptions } =
    {},
): Promise<void> {
  const directory = makeAttemptDir();
  const children: Deno.ChildProcess[] = [];
  const startMaster: StartMaster = () => {
    const child = spawnMaster();
    children.push(child);
    return child;
  };
  await using connection = await openTestHost();
  {
    await using guest = await TestGuest.start(options);
    using stage = testStage(connection, guest, stageOptions);
    const socket = controlSocket(directory) ?? "";
    await test({ connection, guest, stage, directory, socket, startMaster, children });
    await removeMachine(JOB.machine, stage, { attemptDir: directory });
    for (const child of children) assert.equal((await child.status).code, 0);
  }
  await Deno.remove(directory); // which fails if a socket is left in it
}

/** Runs a script by the master, which has to be there. */
async function runBy({ socket }: Pick<Bed, "socket">, text: string): Promise<number> {
  const bytes = script(text).length;
  using session = await findMaster(socket, { machine: JOB.machine, bytes });
  assert(session !== null, "there is no master");
  const output = { stdout: () => Promise.resolve(), stderr: () => Promise.resolve() };
  return await session.run(script(text), output, new AbortController().signal);
}

Deno.test("when prepare is done, the machine's master is logged in, by the job's only login", () =>
  withAttempt(async (bed) => {
    const { stage, startMaster, directory: attemptDir, children, socket, guest } = bed;
    await prepare({ ...JOB, attemptDir }, { startMaster }, stage);
    assert.equal(guest.letIn, 1);
    assert.equal(await runBy(bed, "exit 3"), 3);
    assert.equal(guest.letIn, 1);
    assert.equal(children.length, 1);
    await removeMachine(JOB.machine, stage, { attemptDir });
    assert(!await isThere(socket));
  }));

Deno.test("the host key that its master saw first is the machine's", () =>
  withAttempt(async ({ stage, startMaster, directory: attemptDir, guest }) => {
    const { metadata } = await prepare({ ...JOB, attemptDir }, { startMaster }, stage);
    using ssh = await SshConnection.open(
      { ...loginTo(guest), hostKey: metadata.hostKey },
      { timeoutMs: 15_000, signal: stage.signal },
    );
    assert.equal(ssh.hostKey, metadata.hostKey);
  }));

Deno.test("what its master is told of a machine is what its scripts need, and ends with its deadline", () =>
  withAttempt(async ({ stage, directory: attemptDir }) => {
    const before = Date.now();
    const machine = await prepare({ ...JOB, attemptDir }, {}, stage);
    const of = { socket: "/nonexistent/socket", metricsFile: "/nonexistent/gci.prom" };
    const { deadline, ...task } = masterTask(machine, of);
    assert.deepEqual(task, {
      machine: JOB.machine,
      domain: JOB.machine,
      ...of,
      keeps: true,
      shell: "bash",
    });
    const seconds = ((deadline ?? 0) - before) / 1000;
    assert(seconds >= 4200 && seconds < 4300, `${seconds} s`);
  }, { machine: { keepMinutes: 60 } }));

Deno.test("by hand, and in a directory whose name is too long, there is no master", () =>
  withAttempt(async ({ stage, startMaster, children }) => {
    for (const attemptDir of [null, `/tmp/${"x".repeat(120)}`]) {
      await prepare({ ...JOB, attemptDir }, { startMaster }, stage);
      await removeMachine(JOB.machine, stage);
    }
    assert.deepEqual(children, []);
  }));

for (
  const [what, options, words] of [
    ["no SSH server", { machine: { ssh: { port: 1 } } }, /within 1 s: it refuses the connection/],
    [
      "a guest that refuses the key",
      { guest: { refuseKey: true } },
      /refuses the key for the user/,
    ],
  ] as const
) {
  Deno.test(`with ${what}, a prepare fails the same with a master, and leaves none`, () =>
    withAttempt(async ({ stage, startMaster, directory: attemptDir, children }) => {
      const failures: string[] = [];
      for (const how of [{ startMaster }, {}]) {
        const prepared = prepare({ ...JOB, attemptDir }, how, stage);
        const error = await prepared.then(() => assert.fail("it passed"), (error) => error);
        const ofOne = /127\.99\.0\.\d+|Its post-mortem is .*/g; // of this machine alone
        failures.push(`${faultOf(error)}: ${explain(error)}`.replace(ofOne, "…"));
      }
      assert.match(failures[0] ?? "", words);
      assert.equal(failures[0], failures[1]);
      assert.equal(children.length, 1);
    }, { ...options, machine: { timeouts: { sshSeconds: 1 }, ...options.machine } }));
}

Deno.test("a prepare that is cancelled while its master logs in ends at once, and leaves none", () =>
  withAttempt(async ({ stage, startMaster, directory: attemptDir }) => {
    const prepared = prepare({ ...JOB, attemptDir }, { startMaster }, stage);
    setTimeout(() => stage.abort(new SystemFailure({ what: "Cancelled by SIGTERM" })), 2000);
    const start = performance.now();
    await assert.rejects(prepared, /Cancelled by SIGTERM/);
    assert(performance.now() - start < 8000);
  }, { guest: { ignoreCommands: true }, machine: { timeouts: { sshSeconds: 60 } } }));

Deno.test("gc ends the master of a machine that nobody needs any more", () =>
  withAttempt(async (bed) => {
    const { stage, startMaster, directory: attemptDir, connection, socket, children } = bed;
    await prepare({ ...JOB, attemptDir }, { startMaster }, stage);
    await runBy(bed, "true");
    await changeMetadata(connection, JOB.machine, { deadline: Date.now() - 1000 });
    await gc({}, stage);
    assert(!await isThere(socket));
    await children[0]?.status;
  }));

for (
  const [what, startOther] of [
    ["does not start", () => assert.fail("no such program")],
    ["ends at once", () => spawnOther("exit 1")],
    ["says something else", () => spawnOther("echo hello; cat >/dev/null")],
    ["says nothing", () => spawnOther("cat >/dev/null")],
    ["ends when it is to log in", () => spawnOther("printf '\\004\\0\\0\\0\\0'; head -c 1")],
  ] as const
) {
  Deno.test(`where the process of its master ${what}, prepare logs in by itself`, () =>
    withAttempt(async ({ stage, directory: attemptDir, socket, guest }) => {
      const others: Deno.ChildProcess[] = [];
      const startMaster: StartMaster = () => {
        const child = startOther();
        others.push(child);
        return child;
      };
      await prepare({ ...JOB, attemptDir }, { startMaster }, stage);
      assert.equal(guest.letIn, 1);
      assert.deepEqual(stage.warnings, []);
      assert(!await isThere(socket));
      for (const child of others) await child.status; // it has nothing more to read
    }));
}

/** Another program in place of a master. */
function spawnOther(program: string): Deno.ChildProcess {
  return new Deno.Command("sh", {
    args: ["-c", program],
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
}

Deno.test("a machine counts in the queue with what its master takes", () =>
  withAttempt(async ({ stage, startMaster, directory: attemptDir, connection }) => {
    const host = { ...stage.config.host, maxMachines: 0, queueSeconds: 1 };
    const full = toStage({ ...stage, config: { ...stage.config, host } });
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    const counted: number[] = [];
    for (const wanted of [{ startMaster }, {}]) {
      const prepared = prepare({ ...JOB, attemptDir }, wanted, full);
      prepared.catch(() => {});
      let entries = entriesIn(await pool.volumeNames());
      while (entries.length === 0) entries = entriesIn(await pool.volumeNames());
      counted.push(entries[0]?.memoryMib ?? 0);
      await assert.rejects(prepared, /did not leave the queue/);
    }
    const { memoryMib } = stage.config.machine;
    assert.deepEqual(counted, [memoryMib + MASTER_MIB, memoryMib]);
  }));

Deno.test("a master has none of the job's variables", () => {
  const job = { CUSTOM_ENV_TOKEN: "secret", JOB_RESPONSE_FILE: "/tmp/x", LIBVIRT_GCI_MACHINE: "m" };
  const names = Object.keys(masterVariables({ ...job, PATH: "/bin" }));
  assert.deepEqual(names.filter((name) => !name.startsWith("MALLOC_")), ["PATH"]);
});
