// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { MASTER_ARGUMENT } from "../../src/cli/background.ts";
import { findMaster, type MasterSession } from "../../src/guest/master/client.ts";
import { controlSocket } from "../../src/guest/master/control_socket.ts";
import { keepConnection, type MasterTask } from "../../src/guest/master/master.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import type { Context } from "../../src/machine/context.ts";
import { readMetadata } from "../../src/machine/metadata.ts";
import { runByMaster } from "../../src/machine/run_by_master.ts";
import { run } from "../../src/machine/run_script.ts";
import { sleep } from "../../src/wait.ts";
import type { TestGuest, TestGuestOptions } from "./test_guest.ts";
import type { TestStageOptions } from "./test_stage.ts";

const MAIN = new URL("../../main.ts", import.meta.url).pathname;

/** A directory as GitLab Runner makes one for an attempt. */
export function makeAttemptDir(): string {
  return Deno.makeTempDirSync({ prefix: "libvirt-gci-test-" });
}

/** What the master of a test guest is for. */
export function masterTask(
  guest: TestGuest,
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
    login: guest.login,
    ...differences,
  };
}

/** A connection master in this process. It ends when it is disposed of. */
export class TestMaster implements AsyncDisposable {
  readonly task: MasterTask;
  /** Resolves when it has ended. */
  readonly ended: Promise<void>;
  readonly #over = new AbortController();

  constructor(task: MasterTask) {
    this.task = task;
    this.ended = keepConnection(task, this.#over.signal);
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

/** Starts a process that becomes a connection master when its stdin has said of what. */
export function spawnMaster(): Deno.ChildProcess {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-all", MAIN, MASTER_ARGUMENT],
    stdin: "piped",
    stdout: "null",
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

  /** Resolves when its socket is there. */
  static async start(task: MasterTask): Promise<MasterProcess> {
    const child = spawnMaster();
    const stdin = child.stdin.getWriter();
    await stdin.write(new TextEncoder().encode(JSON.stringify(task)));
    await stdin.close();
    for (let i = 0; i < 500 && !await isThere(task.socket); i++) await sleep(20);
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
    return new TestMaster(masterTask(this.#guest, this.#directory, differences));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#master?.[Symbol.asyncDispose]();
    await Deno.remove(this.#directory); // which fails if the master left anything
  }
}
