// SPDX-License-Identifier: GPL-2.0-or-later
import type { CliOutput } from "./cli/any_line.ts";
import { PROGRAM, type Program } from "./cli/command.ts";
import { directoriesOf } from "./cli/directories.ts";
import { exitStatus, reportScriptStatus } from "./cli/exit_status.ts";
import { type CommandLine, type Commands, parseArguments } from "./cli/parser.ts";
import type { Printer } from "./cli/printer.ts";
import { keptVariables, refillArguments } from "./cli/refill.ts";
import { ScriptOutput } from "./cli/script_output.ts";
import { explain, ScriptFailure } from "./errors.ts";
import type { Outputs } from "./guest/command_streams.ts";
import { type Env, isByHand } from "./job/job.ts";
import type { Connection } from "./libvirt/connection.ts";
import type { Context } from "./machine/context.ts";
import { StepTimer } from "./machine/steps.ts";
import type { Meter } from "./metrics/meter.ts";
import type { Counted } from "./metrics/metrics.ts";
import { loadConfig } from "./settings/load.ts";
import type { Config } from "./settings/settings.ts";

/** All commands, in the order of `--help`. The bundle takes literal paths only. */
export const COMMANDS: Commands = {
  config: () => import("./commands/config.ts"),
  prepare: () => import("./commands/prepare.ts"),
  run: () => import("./commands/run.ts"),
  cleanup: () => import("./commands/cleanup.ts"),
  gc: () => import("./commands/gc.ts"),
  list: () => import("./commands/list.ts"),
  keep: () => import("./commands/keep.ts"),
  ssh: () => import("./commands/ssh.ts"),
  logs: () => import("./commands/logs.ts"),
  console: () => import("./commands/console.ts"),
  doctor: () => import("./commands/doctor.ts"),
  explain: () => import("./commands/explain.ts"),
  warm: () => import("./commands/warm.ts"),
  standby: () => import("./commands/standby.ts"),
};

/** What the program gets from its caller. */
export interface Caller {
  readonly args: readonly string[];
  /** Aborts at a cancel; its reason is the error to end with. */
  readonly signal: AbortSignal;
  /** Where the output of scripts goes. */
  readonly output: Outputs;
  readonly env: Env;
  readonly version: string;
  readonly exit: CliOutput["exit"];
  readonly printer: Printer;
  /** Where the program is, or else is to be, for GitLab Runner to call it. */
  readonly path: string;
  /** Rejects with an error that nothing else in the process caught. */
  readonly uncaught: Promise<never>;
  /** Starts the program once more, with these arguments and variables, and does not wait for it. */
  readonly startInBackground: (args: readonly string[], env: Record<string, string>) => void;
}

/** A caller who is told something in the end. */
type RunningCaller = Caller & Pick<Program, "say">;

/** Does what the command line asks for, and says with which status to exit. It never throws. */
export async function runProgram(caller: Caller): Promise<number> {
  const { env, version, exit, printer, uncaught } = caller;
  const script = new ScriptOutput(caller.output);
  const lastWords: string[] = [];
  const say = (words: string): void => void lastWords.push(inOneLine(words));
  let line: CommandLine | null = null;
  let status = 0;
  try {
    const output = { stdout: console.log, stderr: console.error, exit };
    line = await parseArguments(caller.args, { commands: COMMANDS, version, output });
    const running = { ...caller, output: script, say };
    await Promise.race([runCommand(line, running), uncaught]);
  } catch (error) {
    if (line?.debug && error instanceof Error) printer.debug(inOneLine(error.stack ?? ""));
    const passesStatus = line?.action.passesStatus ?? false;
    const reason = reasonOf(error, line, caller);
    status = await endWith(reason, { env, printer, script, passesStatus });
  }
  if (lastWords.length > 0) {
    await endOutput(script, env);
    printer.warn(`${PROGRAM}: ${lastWords.join("\n")}`);
  }
  return status;
}

/** What fails after a cancel fails for it, and a script's status means nothing any more. */
function reasonOf(error: unknown, line: CommandLine | null, { signal }: Caller): unknown {
  return signal.aborted && line?.action.outlastsCancel === false ? signal.reason : error;
}

/** Says what went wrong, after the script's output, and gives the status that tells whose fault it is. */
async function endWith(
  error: unknown,
  { env, printer, script, passesStatus }: {
    readonly env: Env;
    readonly printer: Printer;
    readonly script: ScriptOutput;
    readonly passesStatus: boolean;
  },
): Promise<number> {
  try {
    await reportScriptStatus(error, env);
  } catch (untold) {
    printer.fail(PROGRAM, explain(untold));
    return exitStatus(untold, env);
  }
  // The output belongs to the script, and its status is passed on: by GitLab, or as our own.
  const isPassedOn = env["BUILD_EXIT_CODE_FILE"] !== undefined || (passesStatus && isByHand(env));
  if (!(error instanceof ScriptFailure) || !isPassedOn) {
    await endOutput(script, env);
    printer.fail(PROGRAM, explain(error));
  }
  return exitStatus(error, env, { passesStatus });
}

async function endOutput(script: ScriptOutput, env: Env): Promise<void> {
  await script.end(env).catch(() => {}); // nobody may be reading it any more
}

/** Runs the command, as a stage if it is one. */
async function runCommand(line: CommandLine, caller: RunningCaller): Promise<void> {
  const { config: file, action, guestCommand } = line;
  const { env, version, path, signal, printer, output, say } = caller;
  const places = { file, home: env["HOME"], xdgConfigHome: env["XDG_CONFIG_HOME"] };
  let loaded: Promise<Config> | null = null;
  const settings = (): Promise<Config> => loaded ??= loadConfig(places);
  const run = (meter: Meter | null): Promise<void> =>
    action.run({
      ...{ env, version, path, signal, printer, output, say, guestCommand, settings },
      onHost: async (body, config) =>
        await onHost(body, { config: config ?? await settings(), line, caller, meter }),
    });
  if (action.countedAs === null) return await run(null);
  await runStage(run, { stage: action.countedAs, config: await settings(), line, caller });
}

/** Runs a command that `metrics_file` counts, and refills the standby machines after it. */
async function runStage(
  run: (meter: Meter | null) => Promise<void>,
  { stage, config, line, caller }: {
    readonly stage: Counted;
    readonly config: Config;
    readonly line: CommandLine;
    readonly caller: Caller;
  },
): Promise<void> {
  const meter = await startMeter(stage, config, caller);
  let failure: unknown = null;
  try {
    await run(meter);
  } catch (error) {
    failure = reasonOf(error, line, caller);
    throw error;
  } finally {
    await meter?.end(failure);
    if (line.action.refills && !caller.signal.aborted) refillStandbys(config, line, caller);
  }
}

/** Begins to count a stage; null where nobody wants it. */
async function startMeter(
  stage: Counted,
  { metricsFile: file }: Config,
  { version, printer }: Caller,
): Promise<Meter | null> {
  if (file === null) return null;
  const { Meter } = await import("./metrics/meter.ts"); // most hosts never need it
  return new Meter({ file, stage, version, warn: (words) => printer.warn(inOneLine(words)) });
}

/** What a job took, or made room for, is made again while nobody waits for it. */
function refillStandbys(
  config: Config,
  { config: file }: CommandLine,
  { startInBackground, env, printer }: Caller,
): void {
  try {
    const refill = refillArguments(config, { file, cwd: Deno.cwd });
    if (refill !== null) startInBackground(refill, keptVariables(env));
  } catch (error) {
    printer.warn(`Cannot create standby machines for the next jobs: ${explain(error)}`);
  }
}

/** Connects to libvirt for a command, and closes the connection after it. */
async function onHost(
  body: (context: Context) => Promise<void>,
  { config, line: { debug, action }, caller, meter }: {
    readonly config: Config;
    readonly line: CommandLine;
    readonly caller: Caller;
    readonly meter: Meter | null;
  },
): Promise<void> {
  const { Connection } = await import("./libvirt/connection.ts"); // some commands never need it
  const { env, printer } = caller;
  const signal = action.outlastsCancel ? new AbortController().signal : caller.signal;
  const onCall = debug
    ? (name: string, ms: number) => printer.debug(`${name} ${ms.toFixed(1)} ms`)
    : null;
  const connect = (callSeconds = config.libvirt.callSeconds): Promise<Connection> =>
    Connection.open(config.libvirt.uri, { callSeconds, signal, onCall });
  await using connection = await connect();
  const context: Context = {
    host: { config, connection, connect, directories: directoriesOf(env, config) },
    report: {
      log: (words) => printer.print(inOneLine(words)),
      warn: (words) => printer.warn(inOneLine(words)),
      progress: printer.progress,
      steps: new StepTimer(meter && meter.onStep),
    },
    signal,
  };
  try {
    await body(context);
  } finally {
    await meter?.measure(context.host);
  }
}

/** A line of ours never looks like two: what follows a line feed may be the guest's words. */
function inOneLine(text: string): string {
  return text.replaceAll("\n", "\n  ");
}
