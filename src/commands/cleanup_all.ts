// SPDX-License-Identifier: GPL-2.0-or-later
import { severalFailures, UsageError } from "../errors.ts";
import { cleanup, type CleanupStage } from "../machine/remove.ts";
import { isKept } from "../machine/metadata.ts";
import { findMachines, lookupNeed } from "../machine/inventory.ts";
import type { Stage } from "../machine/context.ts";

/** Puts a yes-or-no question to the person at the terminal. */
export type Ask = (question: string) => Promise<boolean>;

/**
 * Removes all machines of ours, also those that somebody needs, if the person says yes. `ask` is
 * null where nobody can be asked. Throws SystemFailure, in the end, with all that it could not
 * remove.
 */
export async function cleanupAll(
  { yes, ask }: { readonly yes: boolean; readonly ask: Ask | null },
  stage: CleanupStage & Pick<Stage, "warn">,
): Promise<void> {
  const machines = await findMachines(stage, { refresh: true });
  if (machines.length === 0) return stage.log("There is no machine");
  const needs = new Map(
    await Promise.all(
      machines.map(async (machine) => [machine.name, await lookupNeed(machine, stage)] as const),
    ),
  );
  // Of a machine that took over another, only the name is its own.
  const heirs = new Set([...needs.values()].map(({ record }) => record?.machine));
  const all = [...needs].filter(([name]) => !heirs.has(name)).map(([, need]) => need);
  const needed = all.filter(({ owner, why }) => why === null && owner?.job !== "");
  const kept = needed.filter(({ record }) => record !== null && isKept(record)).length;
  const running = needed.length - kept;
  const question = `Remove ${all.length} machine${all.length === 1 ? "" : "s"}` +
    (running === 0 ? "" : `, ${running} of them of running jobs`) +
    (kept === 0 ? "" : `, ${kept} of them kept after their jobs`) + "?";
  if (!yes) {
    if (ask === null) throw nobodyToAsk(question);
    if (!await ask(question)) return stage.log("Nothing is removed");
  }
  const problems: unknown[] = [];
  for (const machine of machines) {
    const attemptDir = needs.get(machine.name)?.owner?.attemptDir ?? "";
    await cleanup(machine.name, stage, { volumes: machine.volumes, attemptDir })
      .catch((error) => problems.push(error));
  }
  if (problems.length === 0) return;
  const what = `Cannot remove ${problems.length} of ${machines.length} machines`;
  throw severalFailures({ what }, problems);
}

function nobodyToAsk(question: string): UsageError {
  return new UsageError({
    what: `${question} There is no terminal to ask on`,
    advice: "Say --yes if all of them are to go; see them: libvirt-gci list",
  });
}
