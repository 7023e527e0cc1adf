// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * Every call of libvirt that a stage makes, and each way in which it can go wrong there, on libvirt's
 * test driver. `e2e/faults_test.ts` has the faults that need real machines.
 */
import assert from "node:assert/strict";
import { AsyncLocalStorage } from "node:async_hooks";
import { exitStatus } from "../src/cli/exit_status.ts";
import { gc } from "../src/commands/gc.ts";
import type { CallName, Connection } from "../src/libvirt/connection.ts";
import { LibvirtError, VIR_ERR } from "../src/libvirt/error.ts";
import { prepare } from "../src/machine/prepare_machine.ts";
import { removeMachine } from "../src/machine/remove.ts";
import { run } from "../src/machine/run_script.ts";
import { TestGuest } from "./fakes/test_guest.ts";
import { inventory, openTestHost } from "./fakes/test_host.ts";
import { JOB, script, type Stage, type TestStage, testStage, toStage } from "./fakes/test_stage.ts";

/** What happens at a call: before it reaches the daemon, or when the daemon has done it. */
const FAULTS = {
  "fails before it takes effect": { happens: "fails", takesEffect: false },
  "fails after it took effect": { happens: "fails", takesEffect: true },
  "is never answered, nor is a later one": { happens: "hangs", takesEffect: false },
  "takes effect, is never answered, nor is a later one": { happens: "hangs", takesEffect: true },
  "is the last of the process, without effect": { happens: "dies", takesEffect: false },
  "is the last of the process": { happens: "dies", takesEffect: true },
} as const;

type Fault = typeof FAULTS[keyof typeof FAULTS];

/** The process of a stage, and the one call at which its fault comes. */
interface Process {
  readonly fault: Fault | null;
  readonly at: number;
  readonly calls: string[];
  /** Whether the daemon hears and answers it no more. */
  hangs: boolean;
  /** Resolves when it is dead: it never comes back from that call. */
  readonly dead: PromiseWithResolvers<"dead">;
}

const processes = new AsyncLocalStorage<Process>();

/** Has the connection's calls meet the fault of the process that makes them. */
function withFaults(connection: Connection): void {
  const call = connection.call.bind(connection) as (...args: unknown[]) => Promise<unknown>;
  const faulty = async (name: CallName, ...args: readonly unknown[]): Promise<unknown> => {
    const process = processes.getStore();
    if (process === undefined) return await call(name, ...args);
    if (process.hangs) return await end(process, name);
    process.calls.push(name);
    if (process.fault === null || process.calls.length !== process.at) {
      return await call(name, ...args);
    }
    if (process.fault.takesEffect) await call(name, ...args).catch(() => {}); // its own error
    process.hangs = process.fault.happens !== "fails";
    return await end(process, name);
  };
  connection.call = faulty as Connection["call"];
  connection[Symbol.asyncDispose] = () => Promise.resolve(); // it is also the next one's
}

function end({ fault, dead }: Process, name: string): Promise<never> {
  if (fault?.happens === "dies") {
    dead.resolve("dead");
    return new Promise(() => {});
  }
  const code = fault?.happens === "hangs" ? VIR_ERR.OPERATION_TIMEOUT : VIR_ERR.INTERNAL_ERROR;
  return Promise.reject(new LibvirtError(name, "the fault of this test", { code }));
}

const STAGES = {
  prepare: (stage: Stage) => prepare(JOB, {}, stage),
  run: (stage: Stage) => run(JOB.machine, script("sleep 2.2"), stage),
  cleanup: (stage: Stage) => removeMachine(JOB.machine, stage),
} as const;

type StageName = keyof typeof STAGES;

interface Case {
  readonly stage: StageName;
  readonly fault: Fault | null;
  readonly at: number;
}

/** What became of a stage, and the calls that it made. */
interface Outcome {
  readonly end: "done" | "failed" | "dead";
  readonly calls: readonly string[];
}

/** Has a stage meet its fault on a host of its own, cleans up, and sees that nothing is left. */
async function meet({ stage: name, fault, at }: Case, guest: TestGuest): Promise<Outcome> {
  const connection = await openTestHost();
  const before = await inventory(connection);
  withFaults(connection);
  const process: Process = { fault, at, calls: [], hangs: false, dead: Promise.withResolvers() };
  const where = (): string => `${name}: ${at}. ${process.calls[at - 1]}`;
  const timeouts = { sshSeconds: 5 }; // many machines start at once
  using stage = testStage(connection, guest, { machine: { timeouts } });
  const connect = (): Promise<Connection> => {
    if (process.fault?.happens === "hangs") process.hangs = false; // the daemon was started anew
    return Promise.resolve(connection);
  };
  if (name !== "prepare") await prepare(JOB, {}, stage);
  const ended = processes.run(process, () => STAGES[name](toStage({ ...stage, connect })))
    .then(() => "done" as const, (error) => {
      assert.equal(exitStatus(error, {}), 2, where());
      return "failed" as const;
    });
  const end = await Promise.race([ended, process.dead.promise]);
  if (end === "failed" && name === "prepare") {
    const isClaim = process.calls.filter((it) => it === "virStorageVolCreateXML").length === 1;
    if (!isClaim) assert.deepEqual(await inventory(connection), before, where());
  }
  await cleanUp(stage, where());
  assert.deepEqual(await inventory(connection), before, where());
  stage.abort(new Error("the test is over"));
  const isWhole = fault === null || fault.happens === "fails" && !fault.takesEffect;
  if (isWhole) assert.equal(await connection.close(), 0, `${where()}: a handle is left`);
  return { end, calls: process.calls };
}

/** As the runner and the timer do, on connections of their own. */
async function cleanUp(stage: TestStage, where: string): Promise<void> {
  await assert.doesNotReject(removeMachine(JOB.machine, stage), where);
  await assert.doesNotReject(gc({}, stage), where);
}

const AT_ONCE = 3;

/** Meets these cases, some at once, and gives what became of each. */
async function meetAll(cases: readonly Case[], guest: TestGuest): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  const queue = [...cases];
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    for (let next; (next = queue.shift());) outcomes.push(await meet(next, guest));
  }));
  return outcomes;
}

const rows: string[][] = [["stage", "calls", "each call of libvirt ...", "done", "failed", "left"]];

for (const stage of ["prepare", "run", "cleanup"] as const) {
  Deno.test(
    `whatever happens at any call of ${stage}, it is the host's fault, and nothing is left`,
    {
      sanitizeOps: false, // since a stage that is dead never ends
      sanitizeResources: false,
    },
    async () => {
      await using guest = await TestGuest.start();
      const { end, calls } = await meet({ stage, fault: null, at: 0 }, guest);
      assert.equal(end, "done");
      await Promise.all(
        Object.entries(FAULTS).map(async ([words, fault]) => {
          const cases = calls.map((_, i): Case => ({ stage, fault, at: i + 1 }));
          const outcomes = await meetAll(cases, guest);
          const count = (end: Outcome["end"]) => outcomes.filter((it) => it.end === end).length;
          if (fault.happens === "dies") assert.equal(count("dead"), calls.length);
          rows.push([
            stage,
            String(calls.length),
            words,
            String(count("done")),
            fault.happens === "dies" ? "killed" : String(count("failed")),
            "nothing",
          ]);
        }),
      );
    },
  );
}

Deno.test.afterAll(() => {
  const widths = rows[0]?.map((_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0))) ?? [];
  for (const row of rows) console.log(row.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join("  "));
});
