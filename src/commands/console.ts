// SPDX-License-Identifier: GPL-2.0-or-later
import { concatenated } from "../../ffi/memory.ts";
import { machineArgument, switchFlag } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { ownTerminal, type Terminal } from "../cli/terminal.ts";
import { SystemFailure } from "../errors.ts";
import type { Sink } from "../guest/command_streams.ts";
import { consoleLines } from "../guest/console_text.ts";
import { checkMachineName } from "../job/job.ts";
import type { ConsoleSession, Domain, DomainState } from "../libvirt/domain.ts";
import { isLibvirtError, VIR_ERR } from "../libvirt/error.ts";
import type { Context } from "../machine/context.ts";
import { lookupMachine } from "../machine/ready_machine.ts";
import { sleep, within } from "../wait.ts";

export const command = defineCommand("console", {
  description:
    "Connect your terminal to a machine's serial console, until you type ^] or the machine ends.",
  footer: "Without a terminal, it prints the console's output until the machine ends.",
  fields: {
    machine: machineArgument,
    force: switchFlag("--force", "Take the console over from another session."),
  },
  check: ({ machine }) => checkMachineName(machine),
  run: async ({ machine, force }, { env, output: { stdout }, onHost }) => {
    const terminal = ownTerminal(env["TERM"]);
    await onHost((context) => openConsole(machine, { force, terminal, stdout }, context));
  },
});

/** Connects the terminal to the machine's serial console; without one, prints harmless lines. */
export async function openConsole(
  machine: string,
  { force, terminal, stdout }: {
    readonly force: boolean;
    readonly terminal: Pick<Terminal, "input" | "setRaw"> | null;
    readonly stdout: Sink;
  },
  { host, report, signal }: Context,
): Promise<void> {
  using found = await lookupMachine(machine, host);
  const { domain } = found;
  try {
    await domain.withConsole({ force }, async (session) => {
      const open = { session, domain, signal };
      if (terminal === null) return await print(open, stdout);
      const end = await connect(open, terminal, { stdout, warn: report.warn });
      await stdout(new TextEncoder().encode("\n")); // the guest's last line may be a prompt
      report.log(`${end === "left" ? "Left the console of" : ENDS[end]} "${machine}"`);
    });
  } catch (cause) {
    if (force || !isLibvirtError(cause, VIR_ERR.OPERATION_FAILED)) throw cause;
    throw new SystemFailure({
      what: `Cannot open the serial console of the machine "${machine}"`,
      cause,
      advice: `End the session that uses it: libvirt-gci console --force ${machine}`,
    });
  }
}

interface Open {
  readonly session: ConsoleSession;
  readonly domain: Domain;
  readonly signal: AbortSignal;
}

/** How a session ended, unless the person left it. */
type End = Exclude<DomainState, "active">;

const ENDS: Readonly<Record<End, string>> = {
  crashed: "The kernel panicked in the machine",
  halted: "The host could not write to the disk of the machine",
  gone: "There is no longer a machine",
};

async function print(open: Open, stdout: Sink): Promise<void> {
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();
  let rest = "";
  const printLines = async (text: string): Promise<void> => {
    const lines = consoleLines(text).map((line) => `${line}\n`).join("");
    if (lines !== "") await stdout(encoder.encode(lines));
  };
  const take = async (bytes: Uint8Array): Promise<void> => {
    const text = rest + decoder.decode(bytes, { stream: true });
    const end = text.length > LONGEST_LINE ? text.length : text.lastIndexOf("\n") + 1;
    rest = text.slice(end);
    await printLines(text.slice(0, end));
  };
  await pass(open, take, new Typed());
  await printLines(rest);
}

const LONGEST_LINE = 4096;

async function connect(
  open: Open,
  terminal: Pick<Terminal, "input" | "setRaw">,
  { stdout, warn }: { readonly stdout: Sink; readonly warn: (line: string) => void },
): Promise<End | "left"> {
  const { name } = open.domain;
  warn(
    `The serial console of "${name}": press ^] (Ctrl and ]) to leave it, or Enter if it is silent. The ` +
      `guest's output can control this terminal: "libvirt-gci logs ${name}" shows it safely`,
  );
  const typed = new Typed();
  terminal.setRaw(true);
  try {
    typed.takeAll(terminal.input).catch(() => {}); // what is typed after the end is lost
    return await pass(open, stdout, typed);
  } finally {
    terminal.setRaw(false);
  }
}

const FIRST_PAUSE_MS = 5;
const LONGEST_PAUSE_MS = 100;
const FOREVER_MS = 2 ** 31 - 1;

/** Passes bytes both ways: typed ones at once, the console's at least ten times a second. */
async function pass(
  { session, domain, signal }: Open,
  take: (bytes: Uint8Array) => Promise<void>,
  typed: Typed,
): Promise<End | "left"> {
  for (let pause = FIRST_PAUSE_MS;; pause = Math.min(pause * 1.5, LONGEST_PAUSE_MS)) {
    signal.throwIfAborted();
    const state = await domain.state(); // libvirt reads the console during this call
    for (;;) {
      const bytes = await session.receive().catch(() => null); // also if another session takes it
      if (bytes === null) return await endOf(domain);
      if (bytes.length === 0) break;
      pause = FIRST_PAUSE_MS;
      await within(take(bytes), FOREVER_MS, signal); // its reader may have stopped
      signal.throwIfAborted();
    }
    if (state !== "active") return state;
    if (await typed.passOn(session)) pause = FIRST_PAUSE_MS;
    if (typed.isLeft) {
      await typed.passOn(session); // what came meanwhile, as far as it goes now
      return "left";
    }
    await sleep(pause, AbortSignal.any([signal, typed.comes]));
  }
}

/** How a session ended: with the machine, or else by another session. Throws SystemFailure. */
async function endOf(domain: Domain): Promise<End> {
  for (let attempt = 0; attempt < 10; attempt++) {
    const state = await domain.state();
    if (state !== "active") return state;
    await sleep(100); // libvirt may not have noticed yet
  }
  throw new SystemFailure({
    what: `The console session of the machine "${domain.name}" was ended`,
    advice:
      `Take it back, if another session used --force: libvirt-gci console --force ${domain.name}`,
  });
}

const ESCAPE = 0x1d; // ^], as in virsh and telnet

/** The typed bytes, until ^]. */
class Typed {
  isLeft = false;
  #bytes: Uint8Array<ArrayBuffer> = new Uint8Array();
  #wake = new AbortController();

  /** Aborts when there are typed bytes to pass on. */
  get comes(): AbortSignal {
    return this.#wake.signal;
  }

  async takeAll(input: AsyncIterable<Uint8Array>): Promise<void> {
    for await (const bytes of input) {
      const end = bytes.indexOf(ESCAPE);
      const typed = end < 0 ? bytes : bytes.subarray(0, end);
      this.#bytes = concatenated([this.#bytes, typed]);
      this.isLeft = end >= 0;
      this.#wake.abort();
      if (this.isLeft) break;
    }
  }

  /** Sends as many typed bytes as possible now. Resolves to whether there were any. */
  async passOn(session: ConsoleSession): Promise<boolean> {
    this.#wake = new AbortController();
    if (this.#bytes.length === 0) return false;
    const sent = await session.send(this.#bytes);
    this.#bytes = this.#bytes.subarray(sent);
    return true;
  }
}
