// SPDX-License-Identifier: GPL-2.0-or-later
import { type Arguments, type CliOutput, parseArguments, PROGRAM } from "./cli.ts";
import { type Config, loadConfig } from "./config.ts";
import { explain, ScriptFailure, SystemFailure } from "./errors.ts";
import { exitStatus, reportScriptStatus } from "./exit_status.ts";
import { commandLine } from "./guest/command_line.ts";
import { type Env, jobFromEnv, MACHINE_VARIABLE, requireMachine } from "./job.ts";
import { Connection } from "./libvirt/connection.ts";
import { cleanup } from "./stages/cleanup.ts";
import { configJson } from "./stages/config.ts";
import { prepare, type PreparedMachine } from "./stages/prepare.ts";
import { run } from "./stages/run.ts";
import type { Stage } from "./stages/stage.ts";

/** What the program gets from its caller. */
export interface Caller extends Pick<Stage, "signal" | "stdout" | "stderr"> {
  readonly args: readonly string[];
  readonly env: Env;
  readonly version: string;
  readonly exit: CliOutput["exit"];
}

/** Does what the command line asks for, and says with which status to exit. It never throws. */
export async function runProgram(caller: Caller): Promise<number> {
  const { env, version, signal, exit } = caller;
  let debug = false;
  let ends = false;
  try {
    const output = { stdout: print, stderr: printError, exit };
    const args = parseArguments(caller.args, { version, output });
    debug = args.debug;
    ends = endsWhenCancelled(args);
    // The file stays from stage to stage, and may hold the status of an earlier script.
    if (args.action.command === "run") await reportScriptStatus(null, env);
    await runCommand(args, caller);
    return 0;
  } catch (error) {
    if (debug && error instanceof Error) printError(`debug: ${error.stack}`);
    // What fails after a cancel fails for it, and a script's status means nothing any more.
    return await endWith(ends && signal.aborted ? signal.reason : error, env);
  }
}

/** Cleanup does not: what it leaves behind, nobody removes. */
function endsWhenCancelled({ action }: Arguments): boolean {
  return action.command !== "cleanup";
}

/** Says what went wrong, and gives the status that tells whose fault it is. */
export async function endWith(error: unknown, env: Env): Promise<number> {
  try {
    await reportScriptStatus(error, env);
  } catch (cause) {
    const untold = new SystemFailure({ what: "Cannot tell GitLab the script's status", cause });
    printError(`${PROGRAM}: ${explain(untold)}`);
    return exitStatus(untold, env);
  }
  // Under GitLab Runner, the job's log belongs to the script; GitLab itself states its status.
  if (!(error instanceof ScriptFailure) || env["BUILD_EXIT_CODE_FILE"] === undefined) {
    printError(`${PROGRAM}: ${explain(error)}`);
  }
  return exitStatus(error, env);
}

async function runCommand(args: Arguments, caller: Caller): Promise<void> {
  const { action, guestCommand } = args;
  const { env, version } = caller;
  const places = { file: args.config, home: env["HOME"], xdgConfigHome: env["XDG_CONFIG_HOME"] };
  const config = await loadConfig(places);
  switch (action.command) {
    case "config": {
      const job = await jobFromEnv({ ...env, [MACHINE_VARIABLE]: undefined });
      return print(configJson(job, config, version));
    }
    case "prepare": {
      const job = await jobFromEnv(env, action);
      return await withStage({ config, args, caller }, async (stage) => {
        const prepared = await prepare(job, action, stage);
        if (job.byHand) printManual(prepared);
      });
    }
    case "run": {
      const machine = requireMachine(await jobFromEnv(env, action));
      const script = await readScript(action.path, guestCommand);
      return await withStage({ config, args, caller }, (stage) => run(machine, script, stage));
    }
    case "cleanup": {
      const machine = requireMachine(await jobFromEnv(env, action));
      return await withStage({ config, args, caller }, (stage) => cleanup(machine, stage));
    }
  }
}

/** Connects to libvirt for a stage, and closes the connection after it. */
async function withStage(
  { config, args, caller }: {
    readonly config: Config;
    readonly args: Arguments;
    readonly caller: Caller;
  },
  body: (stage: Stage) => Promise<void>,
): Promise<void> {
  const { env, signal, stdout, stderr } = caller;
  const connect = (): Promise<Connection> =>
    Connection.open(config.uri, {
      callSeconds: config.callSeconds,
      signal: endsWhenCancelled(args) ? signal : null,
      onCall: args.debug ? (name, ms) => printError(`debug: ${name} ${ms.toFixed(1)} ms`) : null,
    });
  await using connection = await connect();
  await body({
    ...{ config, connection, connect, signal, home: env["HOME"], stdout, stderr },
    ...{ log: print, warn: printError },
  });
}

/** How a person goes on from here. */
function printManual({ name, record }: PreparedMachine): void {
  const port = record.port === "22" ? "" : `-p ${record.port} `;
  print(`Log in:   ssh -i ${record.key} ${port}${record.user}@${record.address}`);
  print(`Or:       ${PROGRAM} run --machine ${name} -- COMMAND`);
  print(`Clean up: ${PROGRAM} cleanup --machine ${name}`);
}

async function readScript(
  path: string | undefined,
  guestCommand: readonly string[] | null,
): Promise<Uint8Array> {
  if (guestCommand !== null) return new TextEncoder().encode(commandLine(guestCommand));
  try {
    return await Deno.readFile(path ?? "");
  } catch (cause) {
    throw new SystemFailure({
      what: `Cannot read the script "${path}"`,
      cause,
      advice: "Check that the file exists and that this user may read it",
    });
  }
}

function print(line: string): void {
  console.log(line);
}

function printError(line: string): void {
  console.error(line);
}
