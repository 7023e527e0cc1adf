// SPDX-License-Identifier: GPL-2.0-or-later
import { type Arguments, type CliOutput, parseArguments, PROGRAM } from "./cli.ts";
import { type Config, loadConfig } from "./config.ts";
import { explain, ScriptFailure, SystemFailure } from "./errors.ts";
import { exitStatus, reportScriptStatus } from "./exit_status.ts";
import { commandLine } from "./guest/command_line.ts";
import { type Env, jobFromEnv, MACHINE_VARIABLE, requireMachine } from "./job.ts";
import { Connection } from "./libvirt/connection.ts";
import { toVisible } from "./quoted.ts";
import { ScriptOutput } from "./script_output.ts";
import { cleanup } from "./stages/cleanup.ts";
import { configJson } from "./stages/config.ts";
import { explainJob, jobToExplain } from "./stages/explain.ts";
import { howToGoOn, prepare } from "./stages/prepare.ts";
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
  const script = new ScriptOutput(caller);
  try {
    const output = { stdout: console.log, stderr: console.error, exit };
    const args = parseArguments(caller.args, { version, output });
    debug = args.debug;
    ends = endsWhenCancelled(args);
    // The file stays from stage to stage, and may hold the status of an earlier script.
    if (args.action.command === "run") await reportScriptStatus(null, env);
    await runCommand(args, { ...caller, stdout: script.stdout, stderr: script.stderr });
    return 0;
  } catch (error) {
    if (debug && error instanceof Error) printError(`debug: ${error.stack}`);
    // What fails after a cancel fails for it, and a script's status means nothing any more.
    return await endWith(ends && signal.aborted ? signal.reason : error, env, script);
  }
}

/** Cleanup does not: what it leaves behind, nobody removes. */
function endsWhenCancelled({ action }: Arguments): boolean {
  return action.command !== "cleanup";
}

/** Says what went wrong, after the script's output, and gives the status that tells whose fault it is. */
export async function endWith(
  error: unknown,
  env: Env,
  script?: ScriptOutput,
): Promise<number> {
  try {
    await reportScriptStatus(error, env);
  } catch (cause) {
    const untold = new SystemFailure({ what: "Cannot tell GitLab the script's status", cause });
    printError(`${PROGRAM}: ${explain(untold)}`);
    return exitStatus(untold, env);
  }
  // Under GitLab Runner, the job's log belongs to the script; GitLab itself states its status.
  if (!(error instanceof ScriptFailure) || env["BUILD_EXIT_CODE_FILE"] === undefined) {
    await script?.end(env);
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
      const { distro } = action;
      const job = await jobFromEnv({ ...env, [MACHINE_VARIABLE]: undefined }, { distro });
      return print(configJson(job, config, version));
    }
    case "prepare": {
      const job = await jobFromEnv(env, action);
      return await withStage({ config, args, caller }, async (stage) => {
        const prepared = await prepare(job, action, stage);
        if (job.byHand) howToGoOn(prepared).forEach(print);
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
    case "explain": {
      const { text, refusal } = explainJob(await jobToExplain(action, env), config, action);
      print(text);
      if (refusal !== null) throw refusal;
      return;
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
    keyDirectory: await keyDirectory(env),
    log: (line) => print(inOneLine(line)),
    warn: (line) => printError(inOneLine(line)),
  });
}

/** The attempt's directory under GitLab Runner, which removes it; else the user's own. */
async function keyDirectory(env: Env): Promise<string> {
  const response = env["JOB_RESPONSE_FILE"];
  if (response) return response.slice(0, response.lastIndexOf("/"));
  const { uid } = await Deno.stat("/proc/self"); // whose owner is the effective user
  if (uid === 0) return "/run/libvirt-gci";
  const runtime = env["XDG_RUNTIME_DIR"];
  return runtime ? `${runtime}/libvirt-gci` : `${env["HOME"] ?? ""}/.cache/libvirt-gci`;
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

/** A line of ours never looks like two: what follows a line feed may be the guest's words. */
function inOneLine(text: string): string {
  return text.replaceAll("\n", "\n  ");
}

function print(text: string): void {
  console.log(toVisible(text));
}

function printError(text: string): void {
  console.error(toVisible(text));
}
