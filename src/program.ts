// SPDX-License-Identifier: GPL-2.0-or-later
import {
  type Arguments,
  type CliOutput,
  durationSeconds,
  parseArguments,
  PROGRAM,
} from "./cli/parser.ts";
import { type Config, type ConfigPlaces, DEFAULT_CONFIG, loadConfig } from "./settings/load.ts";
import { explain, ScriptFailure, SystemFailure, UsageError } from "./errors.ts";
import { exitStatus, reportScriptStatus } from "./cli/exit_status.ts";
import { commandLine } from "./guest/command_line.ts";
import { type Env, jobFromEnv, MACHINE_VARIABLE, requireMachine } from "./job/job.ts";
import { Connection } from "./libvirt/connection.ts";
import type { Meter } from "./metrics/meter.ts";
import type { Printer } from "./cli/printer.ts";
import { ScriptOutput } from "./cli/script_output.ts";
import { cleanupAnyway } from "./machine/remove.ts";
import { type Ask, cleanupAll } from "./commands/cleanup_all.ts";
import { configJson } from "./commands/config.ts";
import { explainJob, jobToExplain } from "./commands/explain.ts";
import { gc } from "./machine/unneeded.ts";
import { keep, keepAfterJob } from "./machine/kept.ts";
import { orReconnected } from "./machine/reconnect.ts";
import { listJson, listMachines, listTable, listWarmImages, warmTable } from "./commands/list.ts";
import { logs } from "./commands/logs.ts";
import { howToGoOn, prepare } from "./commands/prepare.ts";
import { keptVariables, refillArguments } from "./cli/refill.ts";
import { run } from "./commands/run.ts";
import { ssh } from "./commands/ssh.ts";
import type { Stage } from "./machine/context.ts";
import { ownTerminal } from "./cli/terminal.ts";

/** What the program gets from its caller. */
export interface Caller extends Pick<Stage, "signal" | "stdout" | "stderr"> {
  readonly args: readonly string[];
  readonly env: Env;
  readonly version: string;
  readonly exit: CliOutput["exit"];
  readonly stdin: Stdin;
  readonly printer: Printer;
  /** Where the program is, or else is to be, for GitLab Runner to call it. */
  readonly program: string;
  /** Starts the program once more, with these arguments and variables, and does not wait for it. */
  readonly startInBackground: (args: readonly string[], env: Record<string, string>) => void;
}

/** A caller who is told something in the end. */
interface RunningCaller extends Caller {
  /** Takes a line that follows all output of a script. */
  readonly say: (line: string) => void;
}

/** What a person may type. */
export interface Stdin {
  readonly isTerminal: () => boolean;
  /** Reads a line, or a part of it; null at the end. */
  readonly read: (buffer: Uint8Array) => Promise<number | null>;
}

/** Does what the command line asks for, and says with which status to exit. It never throws. */
export async function runProgram(caller: Caller): Promise<number> {
  const { env, version, signal, exit, printer } = caller;
  let debug = false;
  let ends = false;
  const script = new ScriptOutput(caller);
  const lastWords: string[] = [];
  try {
    const output = { stdout: console.log, stderr: console.error, exit };
    const args = parseArguments(caller.args, { version, output });
    debug = args.debug;
    ends = endsWhenCancelled(args);
    // The file stays from stage to stage, and may hold the status of an earlier script.
    if (args.action.command === "run") await reportScriptStatus(null, env);
    const say = (line: string): void => void lastWords.push(line);
    await runCommand(args, { ...caller, stdout: script.stdout, stderr: script.stderr, say });
    await sayLast(lastWords, { env, printer, script });
    return 0;
  } catch (error) {
    if (debug && error instanceof Error) printer.debug(inOneLine(error.stack ?? ""));
    // What fails after a cancel fails for it, and a script's status means nothing any more.
    const reason = ends && signal.aborted ? signal.reason : error;
    const status = await endWith(reason, { env, printer, script });
    await sayLast(lastWords, { env, printer, script });
    return status;
  }
}

/** Says what follows all output of the script, and what became of it. */
async function sayLast(
  lines: readonly string[],
  { env, printer, script }: {
    readonly env: Env;
    readonly printer: Printer;
    readonly script: ScriptOutput;
  },
): Promise<void> {
  if (lines.length === 0) return;
  await script.end(env);
  printer.warn(`${PROGRAM}: ${lines.map(inOneLine).join("\n")}`);
}

/** Cleanup does not: what it leaves behind, nobody removes. */
function endsWhenCancelled({ action }: Arguments): boolean {
  return action.command !== "cleanup";
}

/** Says what went wrong, after the script's output, and gives the status that tells whose fault it is. */
export async function endWith(
  error: unknown,
  { env, printer, script }: {
    readonly env: Env;
    readonly printer: Printer;
    readonly script?: ScriptOutput;
  },
): Promise<number> {
  try {
    await reportScriptStatus(error, env);
  } catch (untold) {
    printer.fail(PROGRAM, explain(untold));
    return exitStatus(untold, env);
  }
  // Under GitLab Runner, the job's log belongs to the script; GitLab itself states its status.
  if (!(error instanceof ScriptFailure) || env["BUILD_EXIT_CODE_FILE"] === undefined) {
    await script?.end(env);
    printer.fail(PROGRAM, explain(error));
  }
  return exitStatus(error, env);
}

async function runCommand(args: Arguments, caller: RunningCaller): Promise<void> {
  const { action } = args;
  const { env } = caller;
  const places = { file: args.config, home: env["HOME"], xdgConfigHome: env["XDG_CONFIG_HOME"] };
  if (action.command === "doctor") return await examineHost(action, { args, caller, places });
  const config = await loadConfig(places);
  const meter = await startMeter(args, { config, caller });
  let failure: unknown = null;
  try {
    await runAction({ args, caller, config, meter });
  } catch (error) {
    failure = endsWhenCancelled(args) && caller.signal.aborted ? caller.signal.reason : error;
    throw error;
  } finally {
    await meter?.end(failure);
    refillStandbys(args, config, caller);
  }
}

/** What a job took, or made room for, is made again while nobody waits for it. */
function refillStandbys(
  { action, config: file }: Arguments,
  config: Config,
  { startInBackground, env, printer, signal }: Caller,
): void {
  const { command } = action;
  if (command !== "prepare" && !(command === "cleanup" && !action.all)) return;
  if (signal.aborted) return;
  try {
    const refill = refillArguments(config, { file, cwd: Deno.cwd });
    if (refill !== null) startInBackground(refill, keptVariables(env));
  } catch (error) {
    printer.warn(`Cannot have machines wait for the next jobs: ${explain(error)}`);
  }
}

/** Begins to count a stage; null where nobody wants it, or the command is none that is counted. */
async function startMeter(
  { action }: Arguments,
  { config: { metricsFile: file }, caller: { version, printer } }: {
    readonly config: Config;
    readonly caller: Caller;
  },
): Promise<Meter | null> {
  const stage = action.command;
  if (file === null) return null;
  if (stage !== "prepare" && stage !== "run" && stage !== "cleanup" && stage !== "gc") return null;
  if ((action.command === "cleanup" && action.all) || (action.command === "gc" && action.dryRun)) {
    return null;
  }
  const { Meter } = await import("./metrics/meter.ts"); // most hosts never need it
  return new Meter({ file, stage, version, warn: (line) => printer.warn(inOneLine(line)) });
}

async function runAction(
  { args, caller, config, meter }: {
    readonly args: Arguments;
    readonly caller: RunningCaller;
    readonly config: Config;
    readonly meter: Meter | null;
  },
): Promise<void> {
  const { action, guestCommand } = args;
  const { env, version, printer } = caller;
  switch (action.command) {
    case "config": {
      const { distro } = action;
      const job = await jobFromEnv({ ...env, [MACHINE_VARIABLE]: undefined }, { distro });
      return printer.print(configJson(job, config, version));
    }
    case "prepare": {
      const job = await jobFromEnv(env, action);
      return await withStage({ config, args, caller, meter }, async (stage) => {
        const prepared = await prepare(job, action, stage);
        if (job.byHand) howToGoOn(prepared).forEach((line) => printer.print(line));
      });
    }
    case "run": {
      const job = await jobFromEnv(env, action);
      const machine = requireMachine(job);
      const script = await readScript(action.path, guestCommand);
      const ofJob = job.byHand ? null : { name: action.stage ?? "script", say: caller.say };
      return await withStage({ config, args, caller, meter }, async (stage) => {
        await run(machine, script, stage, ofJob);
      });
    }
    case "cleanup": {
      if (action.all) {
        const question = { yes: action.yes, ask: askAt(caller) };
        return await withStage({ config, args, caller }, (stage) => cleanupAll(question, stage));
      }
      const job = await jobFromEnv(env, action);
      const machine = requireMachine(job);
      return await withStage({ config, args, caller, meter }, async (stage) => {
        const keepIt = (connection: Connection) => keepAfterJob(machine, { ...stage, connection });
        if (!job.byHand && await orReconnected(stage, keepIt)) return;
        await cleanupAnyway(machine, stage);
      });
    }
    case "gc": {
      const { dryRun, olderThan } = action;
      const olderThanSeconds = olderThan === undefined ? null : durationSeconds(olderThan);
      const options = { dryRun, olderThanSeconds };
      return await withStage({ config, args, caller, meter }, (stage) => gc(options, stage));
    }
    case "list": {
      return await withStage({ config, args, caller }, async (stage) => {
        const machines = await listMachines(stage);
        if (action.json) return printer.print(listJson(machines));
        printer.printVisible(listTable(machines, printer.paint));
        const images = await listWarmImages(stage);
        if (images.length > 0) printer.printVisible(`\n${warmTable(images)}`);
      });
    }
    case "keep": {
      const machine = requireMachine(await jobFromEnv({}, action)); // which checks the name
      const seconds = durationSeconds(action.extend);
      return await withStage({ config, args, caller }, async (stage) => {
        await keep(machine, seconds, stage);
      });
    }
    case "ssh": {
      const machine = requireMachine(await jobFromEnv({}, action)); // which checks the name
      const terminal = ownTerminal(env["TERM"]);
      if (terminal === null) throw noTerminal(machine);
      const command = guestCommand === null ? null : commandLine(guestCommand);
      return await withStage({ config, args, caller }, async (stage) => {
        await ssh(machine, { command, terminal, stage });
      });
    }
    case "logs": {
      const machine = requireMachine(await jobFromEnv({}, action)); // which checks the name
      return await withStage({ config, args, caller }, async (stage) => {
        await logs(machine, stage);
      });
    }
    case "console": {
      const machine = requireMachine(await jobFromEnv({}, action)); // which checks the name
      const { openConsole } = await import("./commands/console.ts");
      const terminal = ownTerminal(env["TERM"]);
      return await withStage({ config, args, caller }, async (stage) => {
        await openConsole(machine, { force: action.force, terminal, stage });
      });
    }
    case "warm": {
      // Loaded here, since jobs never call it. To save much RAM takes longer than a job's calls may.
      const { dropWarm, warm } = await import("./machine/warm/save.ts");
      const patient = { ...config, callSeconds: Math.max(config.callSeconds, SAVE_SECONDS) };
      const what = action.drop ? dropWarm : warm;
      return await withStage(
        { config: patient, args, caller },
        (stage) => what(action.templates, stage),
      );
    }
    case "standby": {
      const { dropStandbys, fillStandbys } = await import("./machine/standby/fill.ts"); // no job calls it
      const what = action.drop ? dropStandbys : fillStandbys;
      return await withStage({ config, args, caller }, what);
    }
    case "explain": {
      const { text, refusal } = explainJob(await jobToExplain(action, env), config, action);
      printer.print(text);
      if (refusal !== null) throw refusal;
      return;
    }
  }
}

const SAVE_SECONDS = 600;

/** Prints what is right and wrong with this host. Throws SystemFailure if there is a problem. */
async function examineHost(
  { boot, json }: { readonly boot?: string | undefined; readonly json: boolean },
  { args, caller, places }: {
    readonly args: Arguments;
    readonly caller: Caller;
    readonly places: ConfigPlaces;
  },
): Promise<void> {
  // Loaded here, since jobs never call it.
  const { findingsOfHost, findingsOfJob } = await import("./commands/doctor.ts");
  const { failureOf, findingsJson, findingsText } = await import("./doctor/report.ts");
  let config = DEFAULT_CONFIG;
  let configError: unknown = null;
  try {
    config = await loadConfig(places);
  } catch (error) {
    configError = error; // a finding, like all others
  }
  const { env, program, signal } = caller;
  const context = { config, configError, home: env["HOME"], program, signal };
  const findings = await findingsOfHost(context);
  if (boot !== undefined) {
    await withStage({ config, args, caller }, async (stage) => {
      findings.push(...await findingsOfJob(boot, stage));
    });
  }
  const { printer } = caller;
  if (json) printer.print(findingsJson(findings));
  else printer.printVisible(findingsText(findings, printer.paint));
  const failure = failureOf(findings);
  if (failure !== null) throw failure;
}

function noTerminal(machine: string): UsageError {
  return new UsageError({
    what: "The command ssh needs a terminal",
    advice: `Run a command, which needs none: ${PROGRAM} run --machine ${machine} -- COMMAND`,
  });
}

/** Connects to libvirt for a stage, and closes the connection after it. */
async function withStage(
  { config, args, caller, meter = null }: {
    readonly config: Config;
    readonly args: Arguments;
    readonly caller: Caller;
    readonly meter?: Meter | null;
  },
  body: (stage: Stage) => Promise<void>,
): Promise<void> {
  const { env, stdout, stderr, printer } = caller;
  const signal = endsWhenCancelled(args) ? caller.signal : new AbortController().signal;
  const connect = (callSeconds = config.callSeconds): Promise<Connection> =>
    Connection.open(config.uri, {
      callSeconds,
      signal,
      onCall: args.debug ? (name, ms) => printer.debug(`${name} ${ms.toFixed(1)} ms`) : null,
    });
  await using connection = await connect();
  const stage: Stage = {
    ...{ config, connection, connect, signal, home: env["HOME"], stdout, stderr },
    keyDirectory: attemptDirectory(env) ?? lastingKeyDirectory(env, config.uri),
    lastingKeyDirectory: lastingKeyDirectory(env, config.uri),
    postMortemDirectory: config.postMortemDir ?? postMortemDirectory(env),
    log: (line) => printer.print(inOneLine(line)),
    progress: printer.progress,
    onStep: meter && meter.onStep,
    warn: (line) => printer.warn(inOneLine(line)),
  };
  try {
    await body(stage);
  } finally {
    await meter?.measure(stage);
  }
}

/** Under GitLab Runner, the directory that it removes after the attempt. */
function attemptDirectory(env: Env): string | null {
  const response = env["JOB_RESPONSE_FILE"];
  return response ? response.slice(0, response.lastIndexOf("/")) : null;
}

/**
 * The user's own, with one of its own for each other hypervisor: gc must not take the keys of
 * another's machines for left over.
 */
function lastingKeyDirectory(env: Env, uri: string): string {
  const below = uri === DEFAULT_CONFIG.uri ? "" : `/${encodeURIComponent(uri)}`;
  if (Deno.uid() === 0) return `/run/libvirt-gci${below}`;
  const runtime = env["XDG_RUNTIME_DIR"];
  const base = runtime ? `${runtime}/libvirt-gci` : `${env["HOME"] ?? ""}/.cache/libvirt-gci`;
  return base + below;
}

/** Where systemd's file-hierarchy(7) has what lasts: of the system's, or of one user. */
function postMortemDirectory(env: Env): string {
  const state = Deno.uid() === 0
    ? "/var/lib"
    : env["XDG_STATE_HOME"] || `${env["HOME"] ?? ""}/.local/state`;
  return `${state}/libvirt-gci/post-mortem`;
}

/** Asks at the terminal, where anything but yes is no; null if there is none. */
function askAt({ stdin, stdout, signal }: Caller): Ask | null {
  if (!stdin.isTerminal()) return null;
  return async (question) => {
    await stdout(new TextEncoder().encode(`${question} [y/N] `));
    const buffer = new Uint8Array(64);
    const cancelled = Promise.withResolvers<null>();
    signal.addEventListener("abort", () => cancelled.resolve(null));
    const length = await Promise.race([stdin.read(buffer), cancelled.promise]);
    return /^\s*y(es)?\s*$/i.test(new TextDecoder().decode(buffer.subarray(0, length ?? 0)));
  };
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
