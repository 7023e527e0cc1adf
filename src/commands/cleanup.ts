// SPDX-License-Identifier: GPL-2.0-or-later
import { machineOption, switchFlag } from "../cli/arguments.ts";
import { defineCommand, type Program } from "../cli/command.ts";
import { PROGRAM } from "../cli/program_name.ts";
import { type Ask, askAtTerminal } from "../cli/terminal.ts";
import { UsageError } from "../errors.ts";
import { jobFromEnv, requireMachine } from "../job/job.ts";
import { type Context, withReconnect } from "../machine/context.ts";
import { endMasterOf } from "../machine/end_master.ts";
import { Problems } from "../problems.ts";

/** What removes a machine. */
const loadParts = async () => ({
  ...await import("../machine/remove.ts"),
  ...await import("../machine/kept.ts"),
});

export const command = defineCommand("cleanup", {
  description: "Remove the machine and everything that belongs to it.",
  fields: {
    machine: machineOption,
    all: switchFlag(
      "--all",
      "Remove all machines of libvirt-gci, even those of running jobs.",
    ),
    yes: switchFlag("--yes", "With `--all`, do not ask for confirmation."),
  },
  check: ({ machine, all }) => {
    if (!all || machine === undefined) return;
    throw new UsageError({
      what: "The command cleanup takes --machine or --all, not both",
      advice: `Run ${PROGRAM} cleanup --help`,
    });
  },
  countedAs: ({ all }) => all ? null : "cleanup",
  refills: true,
  outlastsCancel: true, // what it leaves behind stays until gc
  run: async ({ machine, all, yes }, program) => {
    if (!all) return await cleanupAfterJob(machine, program);
    const ask = askAtTerminal(program);
    await program.onHost((context) => cleanupAll({ yes, ask }, context));
  },
});

async function cleanupAfterJob(named: string | undefined, { env, onHost }: Program): Promise<void> {
  const job = await jobFromEnv(env, { machine: named });
  const machine = requireMachine(job);
  // First, so that no script of the job still runs when the machine is kept or removed.
  await endMasterOf(machine, { attemptDir: job.attemptDir ?? "", key: "" });
  await onHost(async (context) => {
    const { keepAfterJob, removeMachineSafely } = await loadParts();
    const keepIt = (context: Context) => keepAfterJob(machine, context);
    if (!job.byHand && await withReconnect(context, keepIt)) return;
    await removeMachineSafely(machine, context);
  }, { load: loadParts });
}

/** Removes all machines, also those of running jobs, if the person says yes. Throws SystemFailure. */
export async function cleanupAll(
  { yes, ask }: { readonly yes: boolean; readonly ask: Ask | null },
  context: Context,
): Promise<void> {
  const { findMachines } = await import("../machine/inventory.ts");
  const { isKept } = await import("../machine/metadata.ts");
  const { lookupNeeds, withoutTakers } = await import("../machine/unneeded.ts");
  const { removeMachine } = await loadParts();
  const found = await findMachines(context, { refresh: true });
  if (found.length === 0) return context.report.log("There is no machine");
  const machines = await lookupNeeds(found, context.host);
  const all = withoutTakers(machines);
  const needed = all.filter(({ owner, why }) => why === null && owner?.job !== "");
  const kept = needed.filter(({ metadata }) => metadata !== null && isKept(metadata)).length;
  const running = needed.length - kept;
  const question = `Remove ${all.length} machine${all.length === 1 ? "" : "s"}` +
    (running === 0 ? "" : `, ${running} of them with running jobs`) +
    (kept === 0 ? "" : `, ${kept} of them kept after their jobs`) + "?";
  if (!yes) {
    if (ask === null) throw nobodyToAsk(question);
    if (!await ask(question)) return context.report.log("Nothing was removed");
  }
  const problems = new Problems();
  for (const { name, volumes, owner } of machines) {
    const attemptDir = owner?.attemptDir ?? "";
    await problems.collect(() => removeMachine(name, context, { volumes, attemptDir }));
  }
  const what = `Cannot remove ${problems.errors.length} of ${machines.length} machines`;
  problems.throwAll({ what });
}

function nobodyToAsk(question: string): UsageError {
  return new UsageError({
    what: `${question} There is no terminal to ask on`,
    advice: "Add --yes to remove all of them; list them with: libvirt-gci list",
  });
}
