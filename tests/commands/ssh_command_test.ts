// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { Terminal } from "../../src/cli/terminal.ts";
import { ssh } from "../../src/commands/ssh.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { sleep } from "../../src/wait.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import { JOB, type TestStage, testStage } from "../fakes/test_stage.ts";

/** A terminal at which a person types these lines; it keeps its output. */
class TypedTerminal implements Terminal {
  readonly type = "xterm";
  readonly modes: boolean[] = [];
  columns = 80;
  #resized: (() => void) | null = null;
  readonly #lines: readonly string[];

  constructor(lines: readonly string[]) {
    this.#lines = lines;
  }

  readonly size = (): { columns: number; rows: number } => ({ columns: this.columns, rows: 24 });
  readonly setRaw = (raw: boolean): void => void this.modes.push(raw);

  readonly onResize = (listener: () => void): Disposable => {
    this.#resized = listener;
    return { [Symbol.dispose]: () => this.#resized = null };
  };

  get input(): AsyncIterable<Uint8Array> {
    return this.#type();
  }

  get isWatched(): boolean {
    return this.#resized !== null;
  }

  resizeTo(columns: number): void {
    this.columns = columns;
    this.#resized?.();
  }

  async *#type(): AsyncGenerator<Uint8Array> {
    for (const line of this.#lines) yield new TextEncoder().encode(line);
    await sleep(10_000); // a person does not close the terminal
  }
}

async function withMachine(
  test: (bed: { readonly stage: TestStage; readonly guest: TestGuest }) => Promise<void>,
): Promise<void> {
  await using connection = await openTestHost();
  await using guest = await TestGuest.start();
  using stage = testStage(connection, guest);
  await prepare(JOB, {}, stage);
  try {
    await test({ stage, guest });
  } finally {
    await removeMachine(JOB.machine, stage);
  }
}

/** A test in which the person still sits at the terminal when the command has ended. */
function terminalTest(name: string, test: Parameters<typeof withMachine>[0]): void {
  Deno.test({ name, sanitizeOps: false, sanitizeResources: false, fn: () => withMachine(test) });
}

terminalTest(
  "ssh gives a shell with the size of the terminal, and leaves the terminal as it was",
  async ({ stage, guest }) => {
    const terminal = new TypedTerminal(["echo it is $((6 * 7))\n", "exit\n"]);
    await ssh(JOB.machine, { command: null, terminal, stdout: stage.stdout }, stage);
    assert.match(stage.output.stdout, /it is 42/);
    assert.deepEqual(guest.terminals, ["80x24"]);
    assert.deepEqual(terminal.modes, [true, false]);
    assert(!terminal.isWatched);
  },
);

terminalTest(
  "ssh says before anything of the guest's that the terminal obeys it, and what makes it visible",
  async ({ stage }) => {
    const before: string[][] = [];
    const stdout = (bytes: Uint8Array): Promise<void> => {
      before.push([...stage.warnings]);
      return stage.stdout(bytes);
    };
    const terminal = new TypedTerminal([]);
    await ssh(JOB.machine, { command: "echo hi", terminal, stdout }, stage);
    assert.match(stage.output.stdout, /hi/);
    const [first] = before;
    assert.match(
      first?.join("|") ?? "",
      /^The output .* can control this terminal: "libvirt-gci logs [\w-]+" shows [^|]*$/,
    );
  },
);

terminalTest(
  "ssh runs a command in a terminal, passes on its new size and ends with its status",
  async ({ stage, guest }) => {
    const terminal = new TypedTerminal([]);
    const ended = ssh(
      JOB.machine,
      { command: "sleep 0.5; exit 7", terminal, stdout: stage.stdout },
      stage,
    );
    while (guest.terminals.length === 0) await sleep(10);
    await sleep(100);
    terminal.resizeTo(132);
    await assert.rejects(ended, { scriptStatus: 7 });
    assert.deepEqual(guest.terminals, ["80x24", "132x24"]);
    assert.deepEqual(terminal.modes, [true, false]);
  },
);

terminalTest(
  "ssh says that the machine was lost, and gives the terminal back",
  async ({ stage, guest }) => {
    const terminal = new TypedTerminal([]);
    const ended = ssh(JOB.machine, { command: "sleep 60", terminal, stdout: stage.stdout }, stage);
    while (guest.terminals.length === 0) await sleep(10);
    await sleep(100);
    guest.cutPower();
    await assert.rejects(ended, /The connection to the machine .* was lost/);
    assert.deepEqual(terminal.modes, [true, false]);
  },
);

Deno.test("ssh says that a machine is gone", async () => {
  await using connection = await openTestHost();
  await using guest = await TestGuest.start();
  using stage = testStage(connection, guest);
  const terminal = new TypedTerminal([]);
  await assert.rejects(
    ssh("gone", { command: null, terminal, stdout: stage.stdout }, stage),
    /"gone" does not exist/,
  );
  assert.deepEqual(terminal.modes, []);
});
