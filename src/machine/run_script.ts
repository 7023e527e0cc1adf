// SPDX-License-Identifier: GPL-2.0-or-later
import { ScriptFailure, SystemFailure } from "../errors.ts";
import type { Outputs } from "../guest/command_streams.ts";
import { GuestSilent, runScript } from "../guest/script.ts";
import { type Context, withSignal } from "./context.ts";
import { isFirstFailure, type JobScript, noteFailure, notePass } from "./kept.ts";
import { domainName } from "./lookup.ts";
import { logIn, lookupReadyMachine, noteAnswer, type RunningMachine } from "./ready_machine.ts";
import { isEnd, isLoss, orFilledByJob } from "./script_fault.ts";
import { explainLoss, watch } from "./script_watch.ts";
import { whileWatched } from "./while_watched.ts";

/**
 * Runs a script in the machine, on a connection of its own. Throws ScriptFailure if it ends with a status
 * other than 0, and SystemFailure if the machine is not there, or is lost before the script ends. If it
 * is a script of a job, the machine's metadata says whether it failed.
 */
export async function run(
  machine: string,
  script: Uint8Array,
  context: Context & Outputs,
  ofJob: JobScript | null = null,
): Promise<void> {
  let name: string | null = null; // of the domain
  try {
    using ready = await lookupReadyMachine(machine, context.host);
    name = ready.domain.name;
    await runInMachine(ready, script, context, ofJob);
  } catch (error) {
    if (!(error instanceof SystemFailure) || context.signal.aborted || !isLoss(error)) throw error;
    name ??= await domainName(machine, context.host);
    throw await explainLoss(name, error, context);
  }
}

async function runInMachine(
  ready: RunningMachine,
  script: Uint8Array,
  context: Context & Outputs,
  ofJob: JobScript | null,
): Promise<void> {
  const { domain, metadata } = ready;
  try {
    await runIn(ready, script, context);
  } catch (cause) {
    const error = orFilledByJob(cause, ofJob);
    const isOver = context.signal.aborted || isEnd(error);
    if (cause instanceof GuestSilent) await noteAnswer(domain, "none");
    if (ofJob !== null && !isOver && isFirstFailure(metadata)) {
      await noteFailure(domain.name, ofJob, context);
    }
    throw error;
  }
  if (ofJob !== null && metadata.failed === ofJob.name) await notePass(domain, ofJob);
}

async function runIn(
  ready: RunningMachine,
  script: Uint8Array,
  context: Context & Outputs,
): Promise<void> {
  const watcher = (ended: AbortController) => watch(ready.domain.name, context.host, ended);
  await whileWatched(watcher, async (ended, lost) => {
    const signal = AbortSignal.any([context.signal, ended]);
    using ssh = await logIn(ready, withSignal(context, signal));
    const shell = ready.metadata.shell === "sh" ? "sh" : "bash";
    const { stdout, stderr } = context;
    const ran = runScript(ssh, { text: script, shell, stdout, stderr }, context.signal);
    const status = await Promise.race([ran, lost]);
    if (status !== 0) throw new ScriptFailure(status);
  });
}
