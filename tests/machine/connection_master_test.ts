// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { masterVariables } from "../../src/cli/background.ts";
import { gc } from "../../src/commands/gc.ts";
import { prepare } from "../../src/commands/prepare.ts";
import { findMaster } from "../../src/guest/master/client.ts";
import { controlSocket } from "../../src/guest/master/control_socket.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { MASTER_MIB, MasterStarter } from "../../src/machine/connection_master.ts";
import { entriesIn } from "../../src/machine/queue/queue.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { sleep } from "../../src/wait.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import { isThere, makeAttemptDir, spawnMaster } from "../fakes/test_master.ts";
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
  readonly master: MasterStarter;
  /** The processes that were started, and what they were given. */
  readonly children: Deno.ChildProcess[];
  readonly inputs: string[];
}

/** Gives the test a job in an attempt's directory, and sees that neither a process nor a socket is left. */
async function withAttempt(
  test: (bed: Bed) => Promise<void>,
  options: TestStageOptions = {},
): Promise<void> {
  const directory = makeAttemptDir();
  const children: Deno.ChildProcess[] = [];
  const inputs: string[] = [];
  const master = new MasterStarter(() => {
    const child = spawnMaster();
    children.push(child);
    const writer = child.stdin.getWriter();
    closers.push(() => writer.close().catch(() => {}));
    return async (input) => {
      inputs.push(input);
      await writer.write(new TextEncoder().encode(input));
      await writer.close();
    };
  });
  const closers: (() => Promise<void>)[] = [];
  await using connection = await openTestHost();
  {
    await using guest = await TestGuest.start();
    using stage = testStage(connection, guest, options);
    const socket = controlSocket(directory) ?? "";
    await test({ connection, guest, stage, directory, socket, master, children, inputs });
    await removeMachine(JOB.machine, stage, { attemptDir: directory });
    for (const close of closers) await close(); // as the end of prepare does
    for (const child of children) assert.equal((await child.status).code, 0);
  }
  await Deno.remove(directory); // which fails if a socket is left in it
}

/** Waits until the master serves, and runs a script by it. */
async function runBy({ socket }: Bed, text: string): Promise<number> {
  const bytes = script(text).length;
  for (let i = 0; i < 200; i++) {
    using session = await findMaster(socket, { machine: JOB.machine, bytes });
    const output = { stdout: () => Promise.resolve(), stderr: () => Promise.resolve() };
    if (session) return await session.run(script(text), output, new AbortController().signal);
    await sleep(50);
  }
  return assert.fail("there is no master");
}

Deno.test("prepare starts a machine's connection master, which ends with the machine", () =>
  withAttempt(async (bed) => {
    const { stage, master, directory: attemptDir, children, socket } = bed;
    await prepare({ ...JOB, attemptDir }, { master }, stage);
    assert.equal(await runBy(bed, "exit 3"), 3);
    assert.equal(children.length, 1);
    await removeMachine(JOB.machine, stage, { attemptDir });
    assert(!await isThere(socket));
  }));

Deno.test("what its master is told of a machine is what its scripts need, and ends with its deadline", () =>
  withAttempt(async ({ stage, master, directory: attemptDir, inputs, guest }) => {
    const socket = controlSocket(attemptDir) ?? "";
    const config = { ...stage.config, metricsFile: "/nonexistent/gci.prom" };
    const before = Date.now();
    await prepare({ ...JOB, attemptDir }, { master }, toStage({ ...stage, config }));
    const { deadline, login: { address, hostKey, ...login }, ...task } = JSON.parse(
      inputs[0] ?? "",
    );
    assert.deepEqual(task, {
      machine: JOB.machine,
      domain: JOB.machine,
      socket,
      metricsFile: "/nonexistent/gci.prom",
      keeps: true,
      shell: "bash",
    });
    const { port, privateKey } = guest;
    assert.deepEqual(login, { port, user: "gitlab-runner", privateKey, channel: null });
    assert.match(`${address} ${hostKey}`, /^127\.99\.0\.\d+ [\w+/]{43}=$/);
    const seconds = (deadline - before) / 1000;
    assert(seconds >= 4200 && seconds < 4300, `${seconds} s`);
    while (!await isThere(socket)) await sleep(20);
  }, { machine: { keepMinutes: 60 } }));

Deno.test("by hand, and in a directory whose name is too long, no master is told anything", () =>
  withAttempt(async ({ stage, master, inputs }) => {
    for (const attemptDir of [null, `/tmp/${"x".repeat(120)}`]) {
      await prepare({ ...JOB, attemptDir }, { master }, stage);
      await removeMachine(JOB.machine, stage);
    }
    assert.deepEqual(inputs, []);
  }));

Deno.test("a prepare that fails leaves no master", () =>
  withAttempt(async ({ stage, master, directory: attemptDir, children, inputs }) => {
    await assert.rejects(prepare({ ...JOB, attemptDir }, { master }, stage), /did not start/);
    assert.deepEqual([children.length, inputs], [1, []]);
  }, { machine: { ssh: { port: 1 }, timeouts: { sshSeconds: 1 } } }));

Deno.test("gc ends the master of a machine that nobody needs any more", () =>
  withAttempt(async (bed) => {
    const { stage, master, directory: attemptDir, connection, socket, children } = bed;
    await prepare({ ...JOB, attemptDir }, { master }, stage);
    await runBy(bed, "true");
    await changeMetadata(connection, JOB.machine, { deadline: Date.now() - 1000 });
    await gc({}, stage);
    assert(!await isThere(socket));
    await children[0]?.status;
  }));

Deno.test("a prepare that cannot start a master goes on without", () =>
  withAttempt(async ({ stage, directory: attemptDir }) => {
    const fails = new MasterStarter(() => {
      throw new Deno.errors.NotFound("no such program");
    });
    await prepare({ ...JOB, attemptDir }, { master: fails }, stage);
    const isGone = new MasterStarter(() => () => Promise.reject(new Deno.errors.BrokenPipe()));
    await removeMachine(JOB.machine, stage);
    await prepare({ ...JOB, attemptDir }, { master: isGone }, stage);
    assert.deepEqual(stage.warnings, []);
  }));

Deno.test("a machine counts in the queue with what its master takes", () =>
  withAttempt(async ({ stage, master, directory: attemptDir, connection }) => {
    const host = { ...stage.config.host, maxMachines: 0, queueSeconds: 1 };
    const full = toStage({ ...stage, config: { ...stage.config, host } });
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    const counted: number[] = [];
    for (const wanted of [master, null]) {
      const prepared = prepare({ ...JOB, attemptDir }, { master: wanted }, full);
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
