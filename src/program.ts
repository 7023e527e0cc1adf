// SPDX-License-Identifier: GPL-2.0-or-later
import type { CliOutput } from "./cli/any_line.ts";
import { keptVariables, MASTER_ARGUMENT, masterVariables } from "./cli/background.ts";
import type { HostOptions, Program } from "./cli/command.ts";
import { exitStatus, reportScriptStatus } from "./cli/exit_status.ts";
import { type CommandLine, type Commands, parseArguments } from "./cli/parser.ts";
import type { Printer } from "./cli/printer.ts";
import { PROGRAM } from "./cli/program_name.ts";
import { ScriptOutput } from "./cli/script_output.ts";
import { explain, ScriptFailure } from "./errors.ts";
import type { Outputs } from "./guest/command_streams.ts";
import type { MasterPipes } from "./guest/master/new_master.ts";
import { type Env, isByHand } from "./job/job.ts";
import type { Connection } from "./libvirt/connection.ts";
import type { Context } from "./machine/context.ts";
import { StepTimer } from "./machine/steps.ts";
import type { Meter } from "./metrics/meter.ts";
import type { Counted } from "./metrics/metrics.ts";
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
  template: () => import("./commands/template/template_command.ts"),
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
  /** What `--version` prints. */
  readonly about: string;
  readonly exit: CliOutput["exit"];
  readonly printer: Printer;
  /** The path for GitLab Runner to call the program, whether it is there yet or not. */
  readonly path: string;
  /** Rejects with an error that nothing else in the process caught. */
  readonly uncaught: Promise<never>;
  /** Starts the program once more, with these arguments and variables, and does not wait for it. */
  readonly startInBackground: (args: readonly string[], env: Record<string, string>) => void;
  /** As that, and gives its standard input and output. */
  readonly startWithPipes: (args: readonly string[], env: Record<string, string>) => MasterPipes;
}

/** A command that runs for its caller. */
interface Running extends Caller, Pick<Program, "say" | "settings"> {
  readonly line: CommandLine;
}

/** Runs the command of the command line, and gives the exit status. It never throws. */
export async function runProgram(caller: Caller): Promise<number> {
  const { env, about, exit, printer, uncaught } = caller;
  const script = new ScriptOutput(caller.output);
  const lastWords: string[] = [];
  const say = (words: string): void => void lastWords.push(inOneLine(words));
  let running: Running | null = null;
  let status = 0;
  try {
    const output = { stdout: console.log, stderr: console.error, exit };
    const line = await parseArguments(caller.args, { commands: COMMANDS, about, output });
    running = { ...caller, output: script, say, line, settings: settingsOf(line, env) };
    await Promise.race([runCommand(running), uncaught]);
  } catch (error) {
    if (running?.line.debug && error instanceof Error) printer.debug(inOneLine(error.stack ?? ""));
    const passesStatus = running?.line.action.passesStatus ?? false;
    const reason = running === null ? error : reasonOf(error, running);
    status = await endWith(reason, { env, printer, script, passesStatus });
  }
  if (lastWords.length > 0) {
    await endOutput(script, env);
    printer.warn(`${PROGRAM}: ${lastWords.join("\n")}`);
  }
  return status;
}

/** The error that counts: after a cancel it is the cancel's, whatever fails for it. */
function reasonOf(error: unknown, { signal, line: { action } }: Running): unknown {
  return signal.aborted && !action.outlastsCancel ? signal.reason : error;
}

/** Prints the error after the script's output, and gives the exit status for it. */
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
  await script.end(env).catch(() => {}); // its reader may be gone
}

/** Runs the command, as a stage if it is one. */
async function runCommand(running: Running): Promise<void> {
  const { line: { action, guestCommand }, env, settings, startWithPipes } = running;
  let metricsFile = async (): Promise<string | null> => (await settings()).metricsFile;
  const countIn = (file: string | null): void => void (metricsFile = () => Promise.resolve(file));
  const run = (meter: Meter | null): Promise<void> =>
    action.run({
      ...running,
      guestCommand,
      countIn,
      startMaster: () => startWithPipes([MASTER_ARGUMENT], masterVariables(env)),
      onHost: async (body, { config, load } = {}) =>
        await onHost(body, { config: config ?? await settings(), meter, load }, running),
    });
  if (action.countedAs === null) return await run(null);
  if (action.countedAs === "run") {
    return await runScriptStage(() => run(null), () => metricsFile(), running);
  }
  await runStage(run, action.countedAs, running);
}

/** Loads the settings when they are first asked for: some commands never need them. */
function settingsOf({ config: file }: CommandLine, env: Env): () => Promise<Config> {
  let loaded: Promise<Config> | null = null;
  const load = async (): Promise<Config> => {
    const { loadConfig } = await import("./settings/load.ts");
    return await loadConfig({ file, home: env["HOME"], xdgConfigHome: env["XDG_CONFIG_HOME"] });
  };
  return () => loaded ??= load();
}

/** Runs a script, and counts it in `metrics_file`, whose path it asks for only in the end. */
async function runScriptStage(
  run: () => Promise<void>,
  metricsFile: () => Promise<string | null>,
  running: Running,
): Promise<void> {
  const start = performance.now();
  let failure: unknown = null;
  try {
    await run();
  } catch (error) {
    failure = reasonOf(error, running);
    throw error;
  } finally {
    const file = await metricsFile().catch(() => null); // the run has failed for the same reason
    await (await startMeter("run", file, { running, start }))?.end(failure);
  }
}

/** Runs a command that `metrics_file` counts, and refills the standby machines after it. */
async function runStage(
  run: (meter: Meter | null) => Promise<void>,
  stage: Counted,
  running: Running,
): Promise<void> {
  const config = await running.settings();
  const meter = await startMeter(stage, config.metricsFile, { running, start: performance.now() });
  let failure: unknown = null;
  try {
    await run(meter);
  } catch (error) {
    failure = reasonOf(error, running);
    throw error;
  } finally {
    await meter?.end(failure);
    const { line: { action }, signal } = running;
    if (action.refills && !signal.aborted) await refillStandbys(config, running);
  }
}

/** Counts a stage from its start; null if `metrics_file` is not set. */
async function startMeter(
  stage: Counted,
  file: string | null,
  { running: { version, printer }, start }: { readonly running: Running; readonly start: number },
): Promise<Meter | null> {
  if (file === null) return null;
  const { Meter } = await import("./metrics/meter.ts"); // most hosts never need it
  const warn = (words: string): void => printer.warn(inOneLine(words));
  return new Meter({ file, stage, version, start, warn });
}

/** Creates standby machines in place of those that the job took or made room for, in the background. */
async function refillStandbys(
  config: Config,
  { line: { config: file }, startInBackground, env, printer }: Running,
): Promise<void> {
  try {
    const { refillArguments } = await import("./cli/refill.ts");
    const refill = refillArguments(config, { file, cwd: Deno.cwd });
    if (refill !== null) startInBackground(refill, keptVariables(env));
  } catch (error) {
    printer.warn(`Cannot create standby machines for the next jobs: ${explain(error)}`);
  }
}

/** Connects to libvirt for a command, and closes the connection after it. */
async function onHost(
  body: (context: Context) => Promise<void>,
  { config, meter, load }: {
    readonly config: Config;
    readonly meter: Meter | null;
    readonly load: HostOptions["load"];
  },
  { line: { debug, action }, env, printer, signal: cancel }: Running,
): Promise<void> {
  const { Connection } = await import("./libvirt/connection.ts"); // some commands never need them
  const { directoriesOf } = await import("./cli/directories.ts");
  const signal = action.outlastsCancel ? new AbortController().signal : cancel;
  const onCall = debug
    ? (name: string, ms: number) => printer.debug(`${name} ${ms.toFixed(1)} ms`)
    : null;
  const connect = (callSeconds = config.libvirt.callSeconds): Promise<Connection> =>
    Connection.open(config.libvirt.uri, { callSeconds, signal, onCall });
  const connecting = connect();
  connecting.catch(() => {}); // it is waited for below
  await load?.();
  await using connection = await connecting;
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

/** Keeps a line of ours one line: what follows a line feed may be the guest's text. */
function inOneLine(text: string): string {
  return text.replaceAll("\n", "\n  ");
}
