// SPDX-License-Identifier: GPL-2.0-or-later
import type { CliOutput } from "./cli/any_line.ts";
import { PROGRAM, type Program } from "./cli/command.ts";
import { directoriesOf } from "./cli/directories.ts";
import { exitStatus, reportScriptStatus } from "./cli/exit_status.ts";
import { type CommandLine, type Commands, parseArguments } from "./cli/parser.ts";
import type { Printer } from "./cli/printer.ts";
import { ScriptOutput } from "./cli/script_output.ts";
import { explain, ScriptFailure } from "./errors.ts";
import type { Outputs } from "./guest/command_streams.ts";
import { type Env, isByHand } from "./job/job.ts";
import type { Connection } from "./libvirt/connection.ts";
import type { Context } from "./machine/context.ts";
import { StepTimer } from "./machine/steps.ts";
import type { Meter } from "./metrics/meter.ts";
import type { Counted } from "./metrics/metrics.ts";
import { templatesToWait } from "./policy/template_choice.ts";
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

interface Caller {
  readonly args: readonly string[];
  /** Aborts at a cancel; its reason is the error to end with. */
  readonly signal: AbortSignal;
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

/** A caller, and what its command line asks for. */
type Running = Caller & Pick<Program, "say"> & { readonly line: CommandLine };

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
    await Promise.race([runCommand({ ...caller, output: script, say, line }), uncaught]);
  } catch (error) {
    if (line?.debug && error instanceof Error) printer.debug(inOneLine(error.stack ?? ""));
    const passesStatus = line?.action.passesStatus ?? false;
    const reason = reasonOf(error, line, caller);
    status = await endWith(reason, passesStatus, script, caller);
  }
  if (lastWords.length > 0) {
    await endOutput(script, env);
    printer.warn(`${PROGRAM}: ${lastWords.join("\n")}`);
  }
  return status;
}

/** What fails after a cancel fails for it, and a script's status means nothing any more. */
function reasonOf(error: unknown, line: CommandLine | null, { signal }: Caller): unknown {
  return line !== null && signal.aborted && !line.action.outlastsCancel ? signal.reason : error;
}

/** Says what went wrong, after the script's output, and gives the status that tells whose fault it is. */
async function endWith(
  error: unknown,
  passesStatus: boolean,
  script: ScriptOutput,
  { env, printer }: Caller,
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

async function runCommand(running: Running): Promise<void> {
  const { env, version, path, signal, printer, output, say, line } = running;
  const { config: file, action, guestCommand } = line;
  const places = { file, home: env["HOME"], xdgConfigHome: env["XDG_CONFIG_HOME"] };
  let loaded: Promise<Config> | null = null;
  const settings = (): Promise<Config> => loaded ??= loadConfig(places);
  const run = (meter: Meter | null): Promise<void> =>
    action.run({
      env,
      version,
      path,
      signal,
      printer,
      output,
      say,
      guestCommand,
      settings,
      onHost: async (body, config) =>
        await onHost(body, config ?? await settings(), meter, running),
    });
  if (action.countedAs === null) return await run(null);
  await runStage(run, action.countedAs, await settings(), running);
}

/** Runs a command that `metrics_file` counts, and refills the standby machines after it. */
async function runStage(
  run: (meter: Meter | null) => Promise<void>,
  stage: Counted,
  config: Config,
  running: Running,
): Promise<void> {
  const meter = await startMeter(stage, config, running);
  let failure: unknown = null;
  try {
    await run(meter);
  } catch (error) {
    failure = reasonOf(error, running.line, running);
    throw error;
  } finally {
    await meter?.end(failure);
    if (running.line.action.refills && !running.signal.aborted) refillStandbys(config, running);
  }
}

async function startMeter(
  stage: Counted,
  { metricsFile: file }: Config,
  { version, printer }: Caller,
): Promise<Meter | null> {
  if (file === null) return null;
  const { Meter } = await import("./metrics/meter.ts"); // most hosts never need it
  return new Meter({ file, stage, version, warn: (words) => printer.warn(inOneLine(words)) });
}

/** Replaces what a job took, while no job waits for it. */
function refillStandbys(config: Config, { line, startInBackground, env, printer }: Running): void {
  try {
    const refill = refillArguments(config, { file: line.config, cwd: Deno.cwd });
    if (refill !== null) startInBackground(refill, keptVariables(env));
  } catch (error) {
    printer.warn(`Cannot create standby machines for the next jobs: ${explain(error)}`);
  }
}

const KEPT_VARIABLES = /^(HOME|PATH|SSH_AUTH_SOCK|XDG_\w+|DENO_\w+)$/;

/** The variables of the program in the background: none of the job's, which may be secret. */
export function keptVariables(env: Env): Record<string, string> {
  const kept = Object.entries(env).filter(([name]) => KEPT_VARIABLES.test(name));
  return Object.fromEntries(kept) as Record<string, string>;
}

/**
 * The arguments for the program in the background; null where the settings want no standby machines.
 * `file` is the settings file that the command line names, in the directory `cwd`.
 */
export function refillArguments(
  config: Config,
  { file, cwd }: { readonly file: string | undefined; readonly cwd: () => string },
): readonly string[] | null {
  if (templatesToWait(config).length === 0) return null;
  if (file === undefined) return ["standby"];
  return ["--config", file.startsWith("/") ? file : `${cwd()}/${file}`, "standby"];
}

async function onHost(
  body: (context: Context) => Promise<void>,
  config: Config,
  meter: Meter | null,
  { line: { debug, action }, env, printer, signal: cancel }: Running,
): Promise<void> {
  const { Connection } = await import("./libvirt/connection.ts"); // some commands never need it
  const signal = action.outlastsCancel ? new AbortController().signal : cancel;
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
