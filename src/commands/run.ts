// SPDX-License-Identifier: GPL-2.0-or-later
import { argument, machineOption, switchFlag } from "../cli/arguments.ts";
import { defineCommand, PROGRAM } from "../cli/command.ts";
import { reportScriptStatus } from "../cli/exit_status.ts";
import {
  BuildFailure,
  type Fault,
  faultOf,
  orFailure,
  ScriptFailure,
  SystemFailure,
  UsageError,
} from "../errors.ts";
import { commandLine } from "../guest/command_line.ts";
import type { Outputs } from "../guest/command_streams.ts";
import { GuestFull, GuestSilent, runScript } from "../guest/script.ts";
import { jobFromEnv, requireMachine } from "../job/job.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Domain, type DomainState } from "../libvirt/domain.ts";
import { type Context, type Host, withSignal } from "../machine/context.ts";
import { isFirstFailure, type JobScript, noteFailure, notePass } from "../machine/kept.ts";
import { domainName } from "../machine/lookup.ts";
import { endedFailure } from "../machine/network/address.ts";
import {
  logIn,
  lookupReadyMachine,
  noteAnswer,
  type RunningMachine,
} from "../machine/ready_machine.ts";
import { sleep, within } from "../wait.ts";

export const command = defineCommand("run", {
  description: 'Run a script, or the command after "--", in the machine.',
  footer:
    "By hand: libvirt-gci run --machine NAME -- COMMAND [ARG...]. The exit status is then the command's own, or 255 if libvirt-gci or the machine fails.",
  fields: {
    machine: machineOption,
    script: switchFlag("--script", "Optional: the next argument is always the script."),
    path: argument("PATH", "The script, a file on this host."),
    stage: argument("STAGE", "GitLab's name for the script, such as build_script."),
  },
  takesCommand: true,
  passesStatus: true,
  check: ({ path }, guestCommand) => {
    if ((path === undefined) === (guestCommand !== null && guestCommand.length > 0)) return;
    throw new UsageError({
      what: path === undefined
        ? "The command run needs a script, or a command after --"
        : `The command run takes a script or a command, not both: "${path}" and --`,
      advice:
        `Run ${PROGRAM} run --script PATH, or ${PROGRAM} run --machine NAME -- COMMAND [ARG...]`,
    });
  },
  countedAs: () => "run",
  run: async (options, { env, guestCommand, output, say, onHost }) => {
    // The file stays from stage to stage, and may hold the status of an earlier script.
    await reportScriptStatus(null, env);
    const job = await jobFromEnv(env, options);
    const machine = requireMachine(job);
    const script = await readScript(options.path, guestCommand);
    const ofJob = job.byHand ? null : { name: options.stage ?? "script", say };
    await onHost((context) => run(machine, script, { ...context, ...output }, ofJob));
  },
});

async function readScript(
  path: string | undefined,
  guestCommand: readonly string[] | null,
): Promise<Uint8Array> {
  if (guestCommand !== null) return new TextEncoder().encode(commandLine(guestCommand));
  return await orFailure(Deno.readFile(path ?? ""), {
    what: `Cannot read the script "${path}"`,
    advice: "Check that the file exists and that this user can read it",
  });
}

const WATCH_MS = 2000;
const WATCH_END_MS = 1000;
const END_MS = 1000;

/**
 * Runs a script in the machine. Throws ScriptFailure if it ends with a status other than 0, and
 * SystemFailure if the machine is not there, or is lost before the script ends. If it is a script of
 * a job, the machine's metadata says whether it failed.
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
    if (!(error instanceof SystemFailure) || context.signal.aborted) throw error;
    if (!LOSSES.includes(faultOf(error))) throw error;
    name ??= await domainName(machine, context.host);
    const failure = await orEnded(name, error, context);
    const { withPostMortem } = await import("../machine/post_mortem/post_mortem.ts"); // what few machines need
    throw await withPostMortem(name, failure, context);
  }
}

/** What ends a machine; it is of no use to keep it. */
const ENDS: readonly Fault[] = ["guest_ended", "storage"];
const LOSSES: readonly Fault[] = [...ENDS, "lost", "ssh_refused", "ssh_timeout", "host_key"];

/** Says that the machine ended, where the connection was lost for that: libvirt may notice later. */
async function orEnded(
  machine: string,
  failure: SystemFailure,
  { host: { connection }, signal }: Context,
): Promise<SystemFailure> {
  for (const end = performance.now() + END_MS; performance.now() < end; await sleep(100, signal)) {
    if (ENDS.includes(faultOf(failure))) break;
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
    const error = cause instanceof GuestFull && isLaterScript(ofJob) ? filledByJob(cause) : cause;
    const isOver = context.signal.aborted || ENDS.includes(faultOf(error));
    if (cause instanceof GuestSilent) await noteAnswer(domain, "none");
    if (ofJob !== null && !isOver && isFirstFailure(metadata)) {
      await noteFailure(domain.name, ofJob, context);
    }
    throw error;
  }
  if (ofJob !== null && metadata.failed === ofJob.name) await notePass(domain, ofJob);
}

/** Whether a script of the same job ran before it. */
function isLaterScript(ofJob: JobScript | null): boolean {
  return ofJob !== null && ofJob.name !== "prepare_script";
}

function filledByJob({ message }: GuestFull): BuildFailure {
  return new BuildFailure({
    fault: "script",
    what: message,
    advice:
      "Free space in the job's earlier scripts, or set the variable LIBVIRT_GCI_DISK_GIB to a " +
      "larger size",
  });
}

async function runIn(
  ready: RunningMachine,
  script: Uint8Array,
  context: Context & Outputs,
): Promise<void> {
  const ended = new AbortController();
  const watching = watch(ready.domain.name, context.host, ended);
  const lost = rejectAtAbort(ended.signal);
  try {
    const signal = AbortSignal.any([context.signal, ended.signal]);
    using ssh = await logIn(ready, withSignal(context, signal));
    const shell = ready.metadata.shell === "sh" ? "sh" : "bash";
    const { stdout, stderr } = context;
    const ran = runScript(ssh, { text: script, shell, stdout, stderr }, context.signal);
    const status = await Promise.race([ran, lost]);
    if (status !== 0) throw new ScriptFailure(status);
  } finally {
    ended.abort();
    await within(watching, WATCH_END_MS);
  }
}

function rejectAtAbort(signal: AbortSignal): Promise<never> {
  const { promise, reject } = Promise.withResolvers<never>();
  signal.addEventListener("abort", () => reject(signal.reason));
  promise.catch(() => {}); // nobody may be waiting any more
  return promise;
}

/**
 * Aborts `ended` when the machine is no longer there, its kernel panicked, or its disk cannot be
 * written: SSH alone would notice after minutes. A daemon that restarts is no reason to end the job.
 */
async function watch(
  machine: string,
  { connection, connect }: Host,
  ended: AbortController,
): Promise<void> {
  let own: Connection | null = null;
  while (!ended.signal.aborted) {
    await sleep(WATCH_MS, ended.signal);
    if (ended.signal.aborted) break;
    try {
      const state = await stateOf(machine, own ?? connection);
      if (state !== "active") ended.abort(endedFailure(machine, state));
    } catch {
      await own?.[Symbol.asyncDispose]().catch(() => {}); // it is of no use any more
      own = await connect().catch(() => null);
    }
  }
  await own?.[Symbol.asyncDispose]();
}
