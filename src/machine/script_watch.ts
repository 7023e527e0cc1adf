// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Domain, type DomainState } from "../libvirt/domain.ts";
import type { Context, Host } from "./context.ts";
import { endedFailure } from "./network/address.ts";
import { isEnd } from "./script_fault.ts";
import { sleep, within } from "../wait.ts";

/** The time between two looks at the machine's state. */
const WATCH_MS = 2000;
const END_MS = 1000;

/**
 * Aborts `ended` when the machine is no longer there, its kernel panicked, or its disk cannot be
 * written: SSH alone would notice after minutes. A daemon that restarts is no reason to end the job.
 */
export async function watch(
  machine: string,
  { connection, connect }: Host,
  ended: AbortController,
): Promise<void> {
  let own: Connection | null = null;
  while (!ended.signal.aborted) {
    try {
      const state = await stateOf(machine, own ?? connection);
      if (state !== "active") ended.abort(endedFailure(machine, state));
    } catch {
      await own?.[Symbol.asyncDispose]().catch(() => {}); // it is useless now
      own = await connect().catch(() => null);
    }
    await sleep(WATCH_MS, ended.signal);
  }
  await own?.[Symbol.asyncDispose]();
}

/**
 * The failure of a script whose machine ended or cannot be reached, with what can be known of that: that
 * it ended, which libvirt may notice later, and its post-mortem.
 */
export async function explainLoss(
  machine: string,
  failure: SystemFailure,
  context: Context,
): Promise<SystemFailure> {
  const known = await orEnded(machine, failure, context);
  const { withPostMortem } = await import("./post_mortem/post_mortem.ts"); // rarely needed
  return await withPostMortem(machine, known, context);
}

/** Says that the machine ended, where the connection was lost for that. */
async function orEnded(
  machine: string,
  failure: SystemFailure,
  { host: { connection }, signal }: Context,
): Promise<SystemFailure> {
  for (const end = performance.now() + END_MS; performance.now() < end; await sleep(100, signal)) {
    if (isEnd(failure)) break;
    const asked = stateOf(machine, connection).catch(() => null);
    const state = await within(asked, end - performance.now()) ?? "active"; // a daemon that hangs
    if (state !== "active") return endedFailure(machine, state, failure);
  }
  return failure;
}

async function stateOf(machine: string, connection: Connection): Promise<DomainState> {
  using domain = await Domain.find(connection, machine);
  return domain === null ? "gone" : await domain.state();
}
