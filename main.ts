// SPDX-License-Identifier: GPL-2.0-or-later
import denoJson from "./deno.json" with { type: "json" };
import { type Arguments, parseArguments, PROGRAM } from "./src/cli.ts";
import { type Config, loadConfig } from "./src/config.ts";
import { explain, ScriptFailure, SystemFailure } from "./src/errors.ts";
import { exitStatus, reportScriptStatus } from "./src/exit_status.ts";
import { commandLine } from "./src/guest/command_line.ts";
import type { Sink } from "./src/guest/ssh.ts";
import { type Env, jobFromEnv, requireMachine } from "./src/job.ts";
import { Connection } from "./src/libvirt/connection.ts";
import { cleanup } from "./src/stages/cleanup.ts";
import { configJson } from "./src/stages/config.ts";
import { prepare, type PreparedMachine } from "./src/stages/prepare.ts";
import { run } from "./src/stages/run.ts";
import type { Stage } from "./src/stages/stage.ts";

const env: Env = Deno.env.toObject(); // without the variables that are no UTF-8
let debug = false;

/** Does what the command line asks for. What it throws decides the exit status. */
async function main(args: Arguments, signal: AbortSignal): Promise<void> {
  const { action, guestCommand } = args;
  const config = await loadConfig({
    file: args.config,
    home: env["HOME"],
    xdgConfigHome: env["XDG_CONFIG_HOME"],
  });
  if (action.command === "config") {
    const job = await jobFromEnv({ ...env, LIBVIRT_GCI_MACHINE: undefined });
    return print(configJson(job, config, denoJson.version));
  }
  const job = await jobFromEnv(env, {
    machine: action.machine,
    distro: action.command === "prepare" ? action.distro : undefined,
  });
  const script = action.command === "run" ? await readScript(action.path, guestCommand) : null;
  const connect = (): Promise<Connection> => connectTo(config, signal);
  await using connection = await connect();
  const stage: Stage = {
    ...{ config, connection, connect, signal, home: env["HOME"], log: print, warn: printError },
    stdout: sinkTo(Deno.stdout),
    stderr: sinkTo(Deno.stderr),
  };
  if (script !== null) return await run(requireMachine(job), script, stage);
  if (action.command === "cleanup") return await cleanup(requireMachine(job), stage);
  if (action.command !== "prepare") return;
  const prepared = await prepare(job, { keyFile: action.keyFile }, stage);
  if (job.byHand) printManual(prepared);
}

/** How a person goes on from here. */
function printManual({ name, record }: PreparedMachine): void {
  const port = record.port === "22" ? "" : `-p ${record.port} `;
  print(`Log in:   ssh -i ${record.key} ${port}${record.user}@${record.address}`);
  print(`Or:       ${PROGRAM} run --machine ${name} -- COMMAND`);
  print(`Clean up: ${PROGRAM} cleanup --machine ${name}`);
}

function connectTo(config: Config, signal: AbortSignal): Promise<Connection> {
  return Connection.open(config.uri, {
    callSeconds: config.callSeconds,
    signal,
    onCall: debug ? (name, ms) => printError(`debug: ${name} ${ms.toFixed(1)} ms`) : undefined,
  });
}

async function readScript(
  path: string | undefined,
  guestCommand: readonly string[] | null,
): Promise<Uint8Array> {
  if (guestCommand !== null) return new TextEncoder().encode(commandLine(guestCommand));
  try {
    return await Deno.readFile(path ?? "");
  } catch (cause) {
    throw new SystemFailure({ what: `Cannot read the script "${path}"`, cause });
  }
}

/** Writes each part whole before it asks for the next: a slow reader slows the guest. */
function sinkTo(stream: { write(bytes: Uint8Array): Promise<number> }): Sink {
  return async (bytes) => {
    for (let written = 0; written < bytes.length;) {
      written += await stream.write(bytes.subarray(written));
    }
  };
}

function print(line: string): void {
  console.log(line);
}

function printError(line: string): void {
  console.error(line);
}

/** Ends the program with the error's status. An error that nobody expected is the host's fault. */
async function fail(error: unknown): Promise<never> {
  const status = exitStatus(error, env);
  try {
    await reportScriptStatus(error, env);
  } catch (cause) {
    printError(
      explain(new SystemFailure({ what: "Cannot tell GitLab the script's status", cause })),
    );
    Deno.exit(exitStatus(cause, env));
  }
  // Under GitLab Runner, the job's log belongs to the script; GitLab itself states its status.
  if (!(error instanceof ScriptFailure) || env["BUILD_EXIT_CODE_FILE"] === undefined) {
    printError(`${PROGRAM}: ${explain(error)}`);
  }
  if (debug && error instanceof Error) printError(`debug: ${error.stack}`);
  return Deno.exit(status);
}

/** Tells the stage to end, at the signals by which GitLab Runner and people cancel it. */
function cancelOnSignals(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGTERM", "SIGINT"] as const) {
    Deno.addSignalListener(name, () => {
      controller.abort(new SystemFailure({ what: `Cancelled by ${name}` }));
    });
  }
  return controller.signal;
}

// Deno itself would exit with 1, by which GitLab blames the job.
globalThis.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  fail(event.reason);
});

try {
  const args = parseArguments(Deno.args, {
    version: denoJson.version,
    output: { stdout: print, stderr: printError, exit: Deno.exit },
  });
  debug = args.debug;
  if (args.action.command === "run") await reportScriptStatus(null, env);
  await main(args, cancelOnSignals());
  Deno.exit(0);
} catch (error) {
  await fail(error);
}
