// SPDX-License-Identifier: GPL-2.0-or-later
import { machineArgument } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { PROGRAM } from "../cli/program_name.ts";
import { ownTerminal, type Terminal } from "../cli/terminal.ts";
import { ScriptFailure, SystemFailure, UsageError } from "../errors.ts";
import type { Sink } from "../guest/command_streams.ts";
import { checkMachineName } from "../job/job.ts";
import type { Context } from "../machine/context.ts";
import { logIn, lookupReadyMachine } from "../machine/ready_machine.ts";
import { execScript } from "../shell.ts";

export const command = defineCommand("ssh", {
  description: 'Open a shell in a machine at your terminal, or run the command after "--" there.',
  footer:
    "The exit status is that of the command or shell, or 255 if libvirt-gci or the machine fails.",
  fields: { machine: machineArgument },
  takesCommand: true,
  passesStatus: true,
  check: ({ machine }) => checkMachineName(machine),
  run: async ({ machine }, { env, guestCommand, output: { stdout }, onHost }) => {
    const terminal = ownTerminal(env["TERM"]);
    if (terminal === null) throw noTerminal(machine);
    const line = guestCommand === null ? null : execScript(guestCommand);
    await onHost((context) => ssh(machine, { command: line, terminal, stdout }, context));
  },
});

function noTerminal(machine: string): UsageError {
  return new UsageError({
    what: "The command ssh needs a terminal",
    advice: `Run a command, which needs none: ${PROGRAM} run --machine ${machine} -- COMMAND`,
  });
}

/** Runs a shell or a command in the machine at a terminal. Throws ScriptFailure and SystemFailure. */
export async function ssh(
  machine: string,
  { command, terminal, stdout }: {
    /** A line for the guest's shell; null is a shell. */
    readonly command: string | null;
    readonly terminal: Terminal;
    readonly stdout: Sink;
  },
  context: Context,
): Promise<void> {
  using ready = await lookupReadyMachine(machine, context.host);
  using connection = await logIn(ready, context);
  context.report.warn(
    `The output of the guest of "${machine}" can control this terminal: "libvirt-gci logs ` +
      `${machine}" shows its console safely`,
  );
  const { type } = terminal;
  const options = { type, size: terminal.size(), output: stdout };
  const remote = await connection.openTerminal(command, options);
  using _ = terminal.onResize(() => remote.resize(terminal.size()));
  terminal.setRaw(true);
  try {
    passOn(terminal.input, remote.write).catch(() => {}); // what is typed after the end is lost
    const { status } = await remote.end;
    if (status === 0) return;
    if (status !== null) throw new ScriptFailure(status);
  } finally {
    terminal.setRaw(false);
  }
  throw new SystemFailure({
    what: `The connection to the machine "${machine}" was lost`,
    cause: connection.lost ?? undefined,
    advice: "Check whether it still runs: libvirt-gci list",
  });
}

async function passOn(input: AsyncIterable<Uint8Array>, write: (bytes: Uint8Array) => void) {
  for await (const bytes of input) write(bytes);
}
