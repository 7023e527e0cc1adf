// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { dirname } from "node:path";
import { controlSocket } from "../../../src/guest/master/control_socket.ts";
import { jobFromEnv, requireMachine } from "../../../src/job/job.ts";
import {
  type Called,
  command,
  e2eTest,
  inventory,
  IS_CORE_ONLY,
  job,
  PROGRAM,
  type Settings,
  settingsFile,
  TESTBED,
} from "../bed.ts";
import type { Strike } from "./killed_program.ts";
import { responseJson } from "../../harness/payload.ts";

/** A fault, and what has to come of it. */
export interface Fault {
  readonly fault: string;
  /** The stage that meets it. */
  readonly stage: "prepare" | "run" | "cleanup";
  /** Its exit status; null where it is killed. */
  readonly status: 0 | 1 | 2 | null;
  /** What it prints then. */
  readonly says: RegExp;
  /**
   * What removes the rest: nothing is left to remove, or the runner calls cleanup, or the runner and
   * the attempt's directory are gone and gc comes.
   */
  readonly then: "nothing" | "cleanup" | "gc";
}

interface Row {
  readonly fault: string;
  readonly stage: string;
  readonly exit: string;
  readonly whose: string;
  readonly message: string;
  readonly left: string;
  /** What is not as it has to be. */
  readonly wrong: readonly string[];
}

const rows: Row[] = [];

/** The program with a fault in it. */
const KILLED_PROGRAM = [
  ...PROGRAM.slice(0, -1),
  new URL("killed_program.ts", import.meta.url).pathname,
];

/** A runner's attempt at a job, which calls the stages one by one. */
export class Attempt {
  static #count = 0;

  readonly dir: string;
  readonly machine: string;
  readonly #template: string;
  readonly #settings: Disposable & { readonly path: string };

  private constructor(dir: string, machine: string, { template, settings }: AttemptOptions) {
    this.dir = dir;
    this.machine = machine;
    this.#template = template ?? "lite";
    // With KVM, the guest is there before the faults are.
    this.#settings = settingsFile({ domain_type: "qemu", ...settings });
  }

  static async begin(options: AttemptOptions = {}): Promise<Attempt> {
    const dir = await Deno.makeTempDir({ prefix: "libvirt-gci-faults-" });
    const file = `${dir}/response.json`;
    await Deno.writeTextFile(file, responseJson(job({ id: 9000 + Attempt.#count++ })));
    const machine = requireMachine(await jobFromEnv({ JOB_RESPONSE_FILE: file }));
    return new Attempt(dir, machine, options);
  }

  prepare(options?: CallOptions): Promise<Called> {
    return this.#call(["prepare"], options);
  }

  async run(script: string, options?: CallOptions): Promise<Called> {
    const path = await Deno.makeTempFile({ dir: this.dir });
    await Deno.writeTextFile(path, script);
    return await this.#call(["run", "--script", path, "build_script"], options);
  }

  cleanup(options?: CallOptions): Promise<Called> {
    return this.#call(["cleanup"], options);
  }

  gc(): Promise<Called> {
    return command([...PROGRAM, "--config", this.#settings.path, "gc"]);
  }

  /** Ends the machine's connection master, so that each script connects by itself. */
  async endMaster(): Promise<void> {
    await Deno.remove(controlSocket(this.dir) ?? assert.fail());
  }

  /** As prepare, for a test that needs the machine. */
  async mustPrepare(): Promise<void> {
    const { status, stderr } = await this.prepare();
    assert.equal(status, 0, stderr);
  }

  /** Calls a stage as the runner does, in a process that is its runner. */
  #call(args: readonly string[], { debug, strike }: CallOptions = {}): Promise<Called> {
    const global = ["--config", this.#settings.path, ...(debug ? ["--debug"] : [])];
    const program = strike === undefined ? PROGRAM : KILLED_PROGRAM;
    return command(["bash", "-c", '"$@"; exit $?', "runner", ...program, ...global, ...args], {
      JOB_RESPONSE_FILE: `${this.dir}/response.json`,
      BUILD_EXIT_CODE_FILE: `${this.dir}/build_exit_code`,
      CUSTOM_ENV_DISTRO: this.#template,
      LIBVIRT_GCI_FAULT: JSON.stringify(strike ?? null),
    });
  }

  /** Removes its directory, as the runner does after cleanup, or the boot of the host. */
  async end(): Promise<void> {
    await Deno.remove(this.dir, { recursive: true }).catch(() => {});
  }

  /** Makes the volumes of the machine look old: one that is half made counts for ten minutes. */
  async age(): Promise<void> {
    const directory = `${dirname(TESTBED.key)}/overlays/`;
    for await (const { name } of Deno.readDir(directory)) {
      if (!name.startsWith(`${this.machine}.`)) continue;
      const time = Date.now() / 1000 - 1200;
      await Deno.utime(directory + name, time, time);
    }
  }

  /** The settings' file goes last: gc needs it. */
  [Symbol.dispose](): void {
    this.#settings[Symbol.dispose]();
  }
}

/** What is special about an attempt. */
export interface AttemptOptions {
  readonly template?: string;
  readonly settings?: Settings;
}

/** What is special about a call. */
export interface CallOptions {
  /** Have it tell its calls of libvirt. */
  readonly debug?: boolean;
  readonly strike?: Strike;
}

/** The compiled program has no place to put faults in, and none of its own to meet. */
export const isFaultIgnored = Deno.env.has("LIBVIRT_GCI");

export const isMatrixIgnored = isFaultIgnored || IS_CORE_ONLY;

/** A test of some faults. */
export function faultTest(
  name: string,
  test: (t: Deno.TestContext) => Promise<void>,
  { core = false }: { readonly core?: boolean } = {},
): void {
  e2eTest(name, test, { ignore: isFaultIgnored, thorough: !core });
}

/**
 * Has a stage of a job meet the fault of this name, sees what it says, has the rest removed, and adds a row to the
 * table. Nothing of ours may be left then, and what others have must be as it was. `meet` gives the
 * end of that stage.
 */
export async function meetFault(
  name: string,
  expected: Omit<Fault, "fault">,
  meet: (attempt: Attempt) => Promise<Called>,
  { isBesideOthers = false, ...options }: AttemptOptions & {
    /** Whether there are others at the same time, whose machines come and go. */
    readonly isBesideOthers?: boolean;
  } = {},
): Promise<void> {
  const before = await inventory();
  using attempt = await Attempt.begin(options);
  const findChanges = async (): Promise<string> => {
    const changes = differences(before, await inventory());
    return changes.filter((it) => !isBesideOthers || it.includes(attempt.machine)).join(", ");
  };
  let met: Called | undefined;
  const wrong: string[] = [];
  const removals: string[] = [];
  const remove = async (stage: string, called: Promise<Called>): Promise<void> => {
    const { status, stdout, stderr } = await called;
    if (status !== 0) wrong.push(`${stage} ended with ${status}: ${stderr.trim()}`);
    const removed = /^Removed.*/m.exec(stdout)?.[0].replace(attempt.machine, "M");
    if (removed !== undefined) removals.push(`${stage}: ${removed}`);
  };
  try {
    met = await meet(attempt);
    wrong.push(...wrongIn(met, expected));
    if (expected.then === "nothing" && await findChanges() !== "") {
      wrong.push("it left something behind");
    }
    if (expected.then !== "gc") {
      await remove("cleanup", attempt.cleanup());
      if (await findChanges() !== "") wrong.push("cleanup left something behind");
      await remove("gc", attempt.gc());
    }
  } finally {
    await attempt.end();
    await attempt.age();
    await remove("gc", attempt.gc());
  }
  const left = await findChanges();
  if (left !== "") wrong.push(`left, or missing: ${left}`);
  const message = messageOf(met) || removals.join("; ");
  addRow({ ...expected, fault: name }, met, { message, left: left || "nothing", wrong });
}

/** Advice, or that the stage was cancelled, for which there is none. */
const ADVICE = /^What to do: |cancelled/im;
/** In a line of ours, a number or a name in place of words. */
const RAW = /^(libvirt-gci|because): .*(\(os error \d+\)|\b(connect|read|write) E[A-Z]{3,}\b)/m;

/** What is not as it has to be in the end of a stage that met this fault. */
export function wrongIn(
  { status, stdout, stderr }: Called,
  fault: Pick<Fault, "status" | "says">,
): string[] {
  const isRight = status === (fault.status ?? 128 + 9);
  return [
    ...(isRight ? [] : [`it ended with ${status}`]),
    ...(fault.says.test(stderr + stdout) ? [] : [`it does not say ${fault.says}: ${stderr}`]),
    ...(status !== 2 || ADVICE.test(stderr) ? [] : [`it says nothing to do: ${stderr}`]),
    ...(RAW.test(stderr) ? [`it shows an error of the system: ${stderr}`] : []),
  ];
}

/** Adds a row to the table. Throws if anything is wrong. */
export function addRow(
  { fault, stage, status }: Fault,
  met: Called,
  cells: Pick<Row, "message" | "left" | "wrong">,
): void {
  const exit = status === null ? "killed" : String(met.status);
  rows.push({ fault, stage, exit, whose: { 1: "job", 2: "host" }[met.status] ?? "-", ...cells });
  assert.deepEqual(cells.wrong, [], `${stage}: ${fault}`);
}

/** The line of ours that says what, and the first of those that say why. */
export function messageOf({ stderr }: Called): string {
  const lines = stderr.split("\n");
  const what = lines.find((line) => line.startsWith("libvirt-gci: ")) ?? "";
  const why = lines.find((line) => line.startsWith("because: ")) ?? "";
  return [what.replace("libvirt-gci: ", ""), why].filter((line) => line !== "").join("; ");
}

/** The lines that went (-) and came (+). */
function differences(
  before: Readonly<Record<string, string>>,
  after: Readonly<Record<string, string>>,
): string[] {
  return Object.keys(before).flatMap((key) => {
    const lines = (record: typeof before) => new Set((record[key] ?? "").split("\n"));
    const gone = lines(before).difference(lines(after));
    const come = lines(after).difference(lines(before));
    return [...[...gone].map((line) => `-${line.trim()}`), ...[...come].map((it) => `+${it}`)];
  });
}

const COLUMNS = ["fault", "stage", "exit", "whose", "left", "message"] as const;
const MESSAGE_CHARACTERS = 150;
const LEFT_CHARACTERS = 40; // the message then says all

/** The table of all faults so far. */
export function table(): string {
  const lines = rows.map(({ wrong, ...row }) => {
    const message = wrong.length > 0 ? `WRONG: ${wrong.join("; ")}` : row.message;
    const cells = {
      ...row,
      left: row.left.slice(0, LEFT_CHARACTERS),
      message: message.slice(0, MESSAGE_CHARACTERS),
    };
    return COLUMNS.map((column) => cells[column]);
  });
  const all = [COLUMNS, ...lines];
  const widths = COLUMNS.map((_, i) => Math.max(...all.map((line) => line[i]?.length ?? 0)));
  const wrong = rows.filter((row) => row.wrong.length > 0).length;
  return [
    ...all.map((line) => line.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join("  ").trimEnd()),
    `${rows.length} faults, ${wrong} wrong`,
  ].join("\n");
}
