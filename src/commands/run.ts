// SPDX-License-Identifier: GPL-2.0-or-later
import { argument, machineOption, switchFlag } from "../cli/arguments.ts";
import { defineCommand, type Program } from "../cli/command.ts";
import { reportScriptStatus } from "../cli/exit_status.ts";
import { PROGRAM } from "../cli/program_name.ts";
import { orFailure, UsageError } from "../errors.ts";
import { endMaster, findMaster } from "../guest/master/client.ts";
import { controlSocket } from "../guest/master/control_socket.ts";
import { jobFromEnv, requireMachine } from "../job/job.ts";
import type { JobScript } from "../machine/kept.ts";
import { runByMaster } from "../machine/run_by_master.ts";
import { execScript } from "../shell.ts";

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
  run: runStage,
});

/** The options of run. */
export interface RunOptions {
  readonly machine?: string | undefined;
  /** The script's file. */
  readonly path?: string | undefined;
  /** GitLab's name for the script. */
  readonly stage?: string | undefined;
}

/**
 * Runs a script in the machine. A job's script goes through the machine's connection master, if there is
 * one. This file imports only what that needs.
 */
export async function runStage(options: RunOptions, program: Program): Promise<void> {
  const { env, guestCommand, say } = program;
  // The file stays from stage to stage, and may hold the status of an earlier script.
  await reportScriptStatus(null, env);
  const job = await jobFromEnv(env, options);
  const machine = requireMachine(job);
  const script = await readScript(options.path, guestCommand);
  if (job.byHand) return await runAlone(machine, script, program, null);
  const ofJob = { name: options.stage ?? "script", say };
  const socket = job.attemptDir === null ? null : controlSocket(job.attemptDir);
  using session = await findMaster(socket, { machine, bytes: script.length });
  if (session !== null) {
    program.countIn(session.known.metricsFile);
    return await runByMaster(session, script, program, ofJob);
  }
  await endMaster(socket, machine); // it is useless, and does not know of this script
  try {
    await runAlone(machine, script, program, ofJob);
  } finally {
    await endMaster(socket, machine); // it has come up meanwhile
  }
}

async function runAlone(
  machine: string,
  script: Uint8Array,
  { output, onHost }: Program,
  ofJob: JobScript | null,
): Promise<void> {
  const load = () => import("../machine/run_script.ts");
  await onHost(async (context) => {
    const { run } = await load();
    await run(machine, script, { ...context, ...output }, ofJob);
  }, { load });
}

async function readScript(
  path: string | undefined,
  guestCommand: readonly string[] | null,
): Promise<Uint8Array> {
  if (guestCommand !== null) return new TextEncoder().encode(execScript(guestCommand));
  return await orFailure(Deno.readFile(path ?? ""), {
    what: `Cannot read the script "${path}"`,
    advice: "Check that the file exists and that this user can read it",
  });
}
