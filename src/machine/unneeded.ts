// SPDX-License-Identifier: GPL-2.0-or-later
import { withoutAttempt } from "../job/job.ts";
import { isLibvirtError } from "../libvirt/error.ts";
import { type Context, quiet, withoutWarnings } from "./context.ts";
import { type FoundMachine, machinesIn } from "./inventory.ts";
import { lookupNeed, type Need } from "./need.ts";
import { removeMachine } from "./remove.ts";
import { findActivePool } from "./storage/pools.ts";

/** Removes a found machine. Resolves to whether anything was left: another gc may have been faster. */
export function removeFound(
  { name, volumes }: Pick<FoundMachine, "name" | "volumes">,
  { owner }: Need,
  context: Context,
): Promise<boolean> {
  return removeMachine(name, quiet(context), { volumes, attemptDir: owner?.attemptDir ?? "" });
}

const SWEEP_MACHINES = 10;
const SWEEP_MS = 2000;

/**
 * A short gc at the start of prepare. It looks at what other attempts at this job left, and at a few
 * random machines of the overlay pool, for two seconds. It never fails, and names no machine, since the
 * log belongs to another job.
 */
export async function sweep(machine: string, context: Context): Promise<void> {
  await removeUnneeded(await chooseSome(machine, context), context, { milliseconds: SWEEP_MS });
}

/**
 * Removes the first of these machines that nobody needs any more, to make room for another. gc reports
 * those that cannot be removed. Resolves to whether it removed one.
 */
export async function removeOneUnneeded(
  found: readonly Pick<FoundMachine, "name" | "volumes">[],
  context: Context,
): Promise<boolean> {
  return await removeUnneeded(found, withoutWarnings(context), { most: 1 }) > 0;
}

/** Resolves to how many of these machines it removed within the limits. */
async function removeUnneeded(
  found: readonly Pick<FoundMachine, "name" | "volumes">[],
  context: Context,
  { milliseconds = Infinity, most = Infinity }: {
    readonly milliseconds?: number;
    readonly most?: number;
  },
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
  if (removed > 0) context.report.log(`Removed ${machines(removed)} no longer needed`);
  if (failed > 0) {
    context.report.warn(
      `Could not remove ${machines(failed)} no longer needed: ` +
        "ask the administrator to run libvirt-gci gc, which shows why",
    );
  }
  return removed;
}

function machines(count: number): string {
  return count === 1 ? "a machine" : `${count} machines`;
}

/** Some machines of the overlay pool, those of the same job first; none if libvirt does not answer. */
async function chooseSome(
  machine: string,
  { host: { connection, config } }: Context,
): Promise<Pick<FoundMachine, "name" | "volumes">[]> {
  try {
    using pool = await findActivePool(connection, config.pools.overlays);
    const job = withoutAttempt(machine);
    const place = ({ name }: { readonly name: string }): number =>
      withoutAttempt(name) === job ? 0 : Math.random();
    return machinesIn(config.pools.overlays, await pool?.volumeNames() ?? [])
      .map((other): [number, typeof other] => [place(other), other])
      .sort(([a], [b]) => a - b).slice(0, SWEEP_MACHINES).map(([, other]) => other);
  } catch (error) {
    if (isLibvirtError(error)) return []; // prepare reports it better
    throw error;
  }
}
