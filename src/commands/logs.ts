// SPDX-License-Identifier: GPL-2.0-or-later
import { machineArgument } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { SystemFailure } from "../errors.ts";
import type { Sink } from "../guest/command_streams.ts";
import { consoleLines } from "../guest/console_text.ts";
import { checkMachineName } from "../job/job.ts";
import type { Host } from "../machine/context.ts";
import { domainName } from "../machine/lookup.ts";
import { readConsole } from "../machine/storage/guest_files.ts";
import { findActivePool } from "../machine/storage/pools.ts";

export const command = defineCommand("logs", {
  description: "Print the output of a machine's serial console.",
  fields: { machine: machineArgument },
  check: ({ machine }) => checkMachineName(machine),
  run: ({ machine }, { output, onHost }) =>
    onHost(({ host }) => logs(machine, output.stdout, host)),
});

/**
 * Prints the machine's serial console, as far as it is kept. Throws SystemFailure if there is none.
 */
export async function logs(machine: string, stdout: Sink, host: Host): Promise<void> {
  const { connection, config } = host;
  using pool = await findActivePool(connection, config.pools.overlays);
  const of = pool && { connection, pool, machine: await domainName(machine, host) };
  const bytes = of && await readConsole(of, Infinity);
  if (bytes === null) {
    throw new SystemFailure({
      what: `The machine "${machine}" has no serial console, or does not exist`,
      advice: "List the machines: libvirt-gci list",
    });
  }
  await stdout(
    new TextEncoder().encode(
      consoleLines(new TextDecoder().decode(bytes)).map((line) => `${line}\n`).join(""),
    ),
  );
}
