// SPDX-License-Identifier: GPL-2.0-or-later
import { durationOption, machineArgument } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { moment } from "../duration.ts";
import { UsageError } from "../errors.ts";
import { checkMachineName } from "../job/job.ts";
import type { Context } from "../machine/context.ts";
import { isKept, writeMetadata } from "../machine/metadata.ts";
import { lookupReadyMachine } from "../machine/ready_machine.ts";

export const command = defineCommand("keep", {
  description: "Keep a job's machine after the job, even if the job succeeds, or keep it longer.",
  footer:
    "If the machine is already kept, extend that time. A machine created by hand stays until you remove it.",
  fields: {
    machine: machineArgument,
    extendSeconds: durationOption(
      "--extend",
      "How much longer to keep it, such as 30m or 2h. The default is one hour.",
      3600,
    ),
  },
  check: ({ machine }) => checkMachineName(machine),
  run: ({ machine, extendSeconds }, { onHost }) =>
    onHost((context) => keep(machine, extendSeconds, context)),
});

/** Keeps a job's machine longer. Throws UsageError for a machine by hand, else SystemFailure. */
export async function keep(
  machine: string,
  extendSeconds: number,
  { host, report }: Context,
): Promise<void> {
  using ready = await lookupReadyMachine(machine, host);
  const { domain, metadata } = ready;
  if (metadata.attemptDir === "") {
    throw new UsageError({
      what: `The machine "${machine}" was created by hand, so it stays until you remove it`,
      advice: `Remove it when you no longer need it: libvirt-gci cleanup --machine ${machine}`,
    });
  }
  const keptUntil = Math.max(Date.now(), metadata.keptUntil ?? 0) + extendSeconds * 1000;
  const deadline = isKept(metadata) ? keptUntil : metadata.deadline;
  await writeMetadata(domain, { ...metadata, keptUntil, deadline });
  report.log(`The machine "${machine}" is kept until ${moment(keptUntil)}`);
}
