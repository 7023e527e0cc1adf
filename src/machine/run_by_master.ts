// SPDX-License-Identifier: GPL-2.0-or-later
import { explain, ScriptFailure, SystemFailure } from "../errors.ts";
import type { Outputs } from "../guest/command_streams.ts";
import type { MasterSession } from "../guest/master/client.ts";
import { GuestSilent } from "../guest/script.ts";
import type { Context } from "./context.ts";
import type { JobScript } from "./kept.ts";
import { isEnd, isLoss, orFilledByJob } from "./script_fault.ts";
import { whileWatched } from "./while_watched.ts";
import { sleep } from "../wait.ts";

const RETRY_MS = 2000;

/** Where a script's output goes, and how to reach libvirt if need be. */
export interface MasterCaller {
  readonly output: Outputs;
  readonly signal: AbortSignal;
  readonly onHost: (body: (context: Context) => Promise<void>) => Promise<void>;
}

/**
 * As run() of run_script.ts, on the connection of the machine's master. libvirt is loaded only for a
 * script that takes long or fails.
 */
export async function runByMaster(
  session: MasterSession,
  script: Uint8Array,
  caller: MasterCaller,
  ofJob: JobScript,
): Promise<void> {
  const { known } = session;
  try {
    await runWatched(session, script, caller);
  } catch (cause) {
    const error = orFilledByJob(cause, ofJob);
    const failing = { cause, error, keeps: known.keeps, domain: known.domain };
    throw await withConsequences(failing, caller, ofJob);
  }
  if (known.keeps && known.hasFailed) await takeBack(known.domain, caller, ofJob);
}

/**
 * Takes back the failure that an earlier script of this name may have noted. The script has passed.
 */
async function takeBack(
  domain: string,
  { onHost }: MasterCaller,
  ofJob: JobScript,
): Promise<void> {
  try {
    await onHost(async ({ host }) => {
      const { notePassOf } = await import("./kept.ts");
      await notePassOf(domain, ofJob, host);
    });
  } catch (error) {
    ofJob.say(
      `The machine "${domain}" may be kept although the stage passed now: ${explain(error)}`,
    );
  }
}

async function runWatched(
  session: MasterSession,
  script: Uint8Array,
  { output, signal, onHost }: MasterCaller,
): Promise<void> {
  const watcher = (ended: AbortController) => watchOnHost(session.known.domain, onHost, ended);
  await whileWatched(watcher, async (_ended, lost) => {
    const status = await Promise.race([session.run(script, output, signal), lost]);
    if (status !== 0) throw new ScriptFailure(status);
  });
}

/** Watches the machine, and tries again where libvirt is away. */
async function watchOnHost(
  domain: string,
  onHost: MasterCaller["onHost"],
  ended: AbortController,
): Promise<void> {
  while (!ended.signal.aborted) {
    await onHost(async ({ host }) => {
      const { watch } = await import("./script_watch.ts");
      await watch(domain, host, ended);
    }).catch(() => {});
    await sleep(RETRY_MS, ended.signal);
  }
}

/** Notes that the script failed, and gives the failure with what is known of it. */
async function withConsequences(
  { cause, error, keeps, domain }: {
    readonly cause: unknown;
    readonly error: unknown;
    readonly keeps: boolean;
    readonly domain: string;
  },
  { signal, onHost }: MasterCaller,
  ofJob: JobScript,
): Promise<unknown> {
  const isSilent = cause instanceof GuestSilent;
  const mayKeep = keeps && !signal.aborted && !isEnd(error);
  const loss = error instanceof SystemFailure && !signal.aborted && isLoss(error) ? error : null;
  if (!isSilent && !mayKeep && loss === null) return error;
  let explained: unknown = error;
  try {
    await onHost(async (context) => {
      if (isSilent) await noteSilence(domain, context);
      if (mayKeep) {
        const { noteFirstFailure } = await import("./kept.ts");
        await noteFirstFailure(domain, ofJob, context);
      }
      if (loss === null) return;
      const { explainLoss } = await import("./script_watch.ts");
      explained = await explainLoss(domain, loss, context);
    });
  } catch (untold) {
    if (mayKeep) ofJob.say(`The machine "${domain}" is not kept: ${explain(untold)}`);
  }
  return explained;
}

async function noteSilence(domain: string, { host }: Context): Promise<void> {
  const { lookupMachine, noteAnswer } = await import("./ready_machine.ts");
  using machine = await lookupMachine(domain, host);
  await noteAnswer(machine.domain, "none");
}
