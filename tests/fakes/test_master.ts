// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { MASTER_ARGUMENT } from "../../src/cli/background.ts";
import { findMaster, type MasterSession } from "../../src/guest/master/client.ts";
import { controlSocket } from "../../src/guest/master/control_socket.ts";
import { KEEPALIVE_MS, keepConnection, type MasterTask } from "../../src/guest/master/master.ts";
import { type MasterPipes, NewMaster } from "../../src/guest/master/new_master.ts";
import { type Login, SshConnection } from "../../src/guest/ssh_connection.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import type { Context } from "../../src/machine/context.ts";
import { readMetadata } from "../../src/machine/metadata.ts";
import { runByMaster } from "../../src/machine/run_by_master.ts";
import { run } from "../../src/machine/run_script.ts";
import type { TestGuest, TestGuestOptions } from "./test_guest.ts";
import type { TestStageOptions } from "./test_stage.ts";

const MAIN = new URL("../../main.ts", import.meta.url).pathname;

/** A directory as GitLab Runner makes one for an attempt. */
export function makeAttemptDir(): string {
  return Deno.makeTempDirSync({ prefix: "libvirt-gci-test-" });
}

/** How to log in to a test guest. */
export function loginTo({ port, privateKey }: TestGuest): Login {
  return {
    address: "127.0.0.1",
    port,
    user: "gitlab-runner",
    privateKey,
    channel: null,
    hostKey: null,
  };
}

/** What a master is for. */
export function masterTask(
  attemptDir: string,
  differences: Partial<MasterTask> = {},
): MasterTask {
  const socket = controlSocket(attemptDir);
  assert(socket !== null);
  return {
    machine: "m",
    domain: "m",
    shell: "bash",
    socket,
    deadline: null,
    keeps: false,
    metricsFile: null,
    ...differences,
  };
}

/** A connection master in this process. It ends when it is disposed of. */
export class TestMaster implements AsyncDisposable {
  readonly task: MasterTask;
  /** Resolves when it has ended. */
  readonly ended: Promise<void>;
  readonly #over = new AbortController();

  private constructor(task: MasterTask, ssh: SshConnection) {
    this.task = task;
    this.ended = keepConnection(task, ssh, this.#over.signal);
  }

  static async start(guest: TestGuest, task: MasterTask): Promise<TestMaster> {
    const { signal } = new AbortController();
    const options = { timeoutMs: 15_000, keepaliveMs: KEEPALIVE_MS, signal };
    return new TestMaster(task, await SshConnection.open(loginTo(guest), options));
  }

  /** A connection to it for a script of so many bytes. Fails if there is none. */
  async session(bytes: number): Promise<MasterSession> {
    const session = await findMaster(this.task.socket, { machine: this.task.machine, bytes });
    assert(session !== null, "there is no master");
    return session;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#over.abort();
    await this.ended;
  }
}

/** The process of a connection master, which waits for what it is told. */
export function spawnMaster(): Deno.ChildProcess & MasterPipes {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-all", MAIN, MASTER_ARGUMENT],
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
}

/** A connection master as a process of its own, as prepare starts it. */
export class MasterProcess implements AsyncDisposable {
  readonly task: MasterTask;
  readonly child: Deno.ChildProcess;

  private constructor(task: MasterTask, child: Deno.ChildProcess) {
    this.task = task;
    this.child = child;
  }

  /** Resolves when it has logged in to the guest, and listens. */
  static async start(guest: TestGuest, task: MasterTask): Promise<MasterProcess> {
    const child = spawnMaster();
    using master = new NewMaster(() => child);
    master.start();
    const { signal } = new AbortController();
    assert.equal(
      typeof await master.tryLogin(loginTo(guest), { signal, connectMs: 5000 }),
      "string",
    );
    await master.give(task);
    assert(await isThere(task.socket), "it does not listen");
    return new MasterProcess(task, child);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.child.kill("SIGKILL");
    } catch {
      // It has ended.
    }
    await this.child.status;
  }
}

/** What a test of scripts needs. */
export interface ScriptTestOptions extends TestStageOptions {
  readonly guest?: TestGuestOptions;
  /** Whether scripts go through a connection master. */
  readonly byMaster?: boolean;
}

/** Makes tests with this bed that must pass whichever way scripts take into their machine. */
export function bothWaysIn<Bed>(
  withBed: (test: (bed: Bed) => Promise<void>, options: ScriptTestOptions) => Promise<void>,
) {
  return (
    name: string,
    test: (bed: Bed) => Promise<void>,
    options: ScriptTestOptions = {},
  ): void => {
    Deno.test(name, () => withBed(test, options));
    const way = `${name}, through a connection master`;
    Deno.test(way, () => withBed(test, { ...options, byMaster: true }));
  };
}

/** Whether there is such a file. */
export async function isThere(path: string): Promise<boolean> {
  return await Deno.lstat(path).then(() => true, () => false);
}

/** The connection master of the machine, which the first script starts. */
export class Masters implements AsyncDisposable {
  readonly #guest: TestGuest;
  readonly #connection: Connection;
  readonly #directory = makeAttemptDir();
  #master: TestMaster | null = null;

  constructor(guest: TestGuest, connection: Connection) {
    this.#guest = guest;
    this.#connection = connection;
  }

  /** As the command does, also on its own if the master has ended. */
  readonly run: typeof run = async (machine, text, stage, ofJob) => {
    this.#master ??= await this.#start(machine);
    const { socket } = this.#master.task;
    using session = await findMaster(socket, { machine, bytes: text.length });
    if (session === null) return await run(machine, text, stage, ofJob);
    const { stdout, stderr, signal } = stage;
    const onHost = (body: (context: Context) => Promise<void>) => body(stage);
    const caller = { output: { stdout, stderr }, signal, onHost };
    await runByMaster(session, text, caller, ofJob ?? { name: "build_script", say: () => {} });
  };

  async #start(machine: string): Promise<TestMaster> {
    using domain = await Domain.lookup(this.#connection, machine);
    const { keepMinutes } = await readMetadata(domain) ?? {};
    const keeps = (keepMinutes ?? 0) > 0;
    const differences = { machine, domain: machine, keeps };
    return await TestMaster.start(this.#guest, masterTask(this.#directory, differences));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#master?.[Symbol.asyncDispose]();
    await Deno.remove(this.#directory); // which fails if the master left anything
  }
}
