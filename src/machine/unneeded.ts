// SPDX-License-Identifier: GPL-2.0-or-later
import { withoutAttempt } from "../job/job.ts";
import { isLibvirtError } from "../libvirt/error.ts";
import { type Context, quiet, withoutWarnings } from "./context.ts";
import { type FoundMachine, machinesIn } from "./inventory.ts";
import { lookupNeed, type Need } from "./need.ts";
import { removeMachine } from "./remove.ts";
import { findActivePool } from "./storage/pools.ts";

/** Removes what was found. Resolves to whether anything was left of it: another gc may have been faster. */
export async function removeFound(
  machine: Pick<FoundMachine, "name" | "volumes">,
  { owner }: Need,
  context: Context,
): Promise<boolean> {
  return await removeMachine(machine.name, quiet(context), {
    volumes: machine.volumes,
    attemptDir: owner?.attemptDir ?? "",
  });
}

const SWEEP_MACHINES = 10;
const SWEEP_MS = 2000;

/**
 * As the command gc, for the start of prepare: it asks about what other attempts at the job of this
 * machine left, whose cleanup may not have reached libvirt, and about a few further machines of the
 * overlay pool, by chance. It begins no further one after two seconds, and never fails. What it does not
 * come to, a later prepare does. It names no machine, since the log may be another job's.
 */
export async function sweep(machine: string, context: Context): Promise<void> {
  await removeUnneeded(await chooseSome(machine, context), context, { milliseconds: SWEEP_MS });
}

/**
 * Removes the first of these machines that nobody needs any more, for somebody who waits for one: its
 * runner may have been killed, and gc come only much later. What cannot be removed is for gc to say.
 * Resolves to whether there was one.
 */
export async function removeOneUnneeded(
  found: readonly Pick<FoundMachine, "name" | "volumes">[],
  context: Context,
): Promise<boolean> {
  return await removeUnneeded(found, withoutWarnings(context), { most: 1 }) > 0;
}

/**
 * As {@linkcode sweep}, of these machines: for so long, and no more than so many. Resolves to how many
 * it removed.
 */
async function removeUnneeded(
  found: readonly Pick<FoundMachine, "name" | "volumes">[],
  context: Context,
  { milliseconds = Infinity, most = Infinity }: {
    readonly milliseconds?: number;
    readonly most?: number;
  } = {},
): Promise<number> {
  const end = performance.now() + milliseconds;
  let removed = 0;
  let failed = 0;
  for (const machine of found) {
    if (removed >= most || performance.now() > end || context.signal.aborted) break;
    try {
      const need = await lookupNeed(machine, context.host);
      if (need.why === null) continue;
      if (await removeFound(machine, need, context)) removed++;
    } catch {
      failed++;
    }
  }
  if (removed > 0) context.report.log(`Removed ${machines(removed)} that nobody needs any more`);
  if (failed > 0) {
    context.report.warn(
      `Could not remove ${machines(failed)} that nobody needs any more: ` +
        "the host's administrator can see why with libvirt-gci gc",
    );
  }
  return removed;
}

function machines(count: number): string {
  return count === 1 ? "a machine" : `${count} machines`;
}

/**
 * Some of the machines that have volumes in the overlay pool, those of the same job first; none where
 * libvirt does not say.
 */
async function chooseSome(
  machine: string,
  { host: { connection, config } }: Context,
): Promise<Pick<FoundMachine, "name" | "volumes">[]> {
  try {
    using pool = await findActivePool(connection, config.pools.overlays);
    const job = withoutAttempt(machine);
    const found = machinesIn(config.pools.overlays, await pool?.volumeNames() ?? []).map((
      other,
    ) => ({
      other,
      place: withoutAttempt(other.name) === job ? 0 : Math.random(),
    }));
    return found.sort((a, b) => a.place - b.place).slice(0, SWEEP_MACHINES)
      .map(({ other }) => other);
  } catch (error) {
    if (isLibvirtError(error)) return []; // prepare is about to say it better
    throw error;
  }
}
