// SPDX-License-Identifier: GPL-2.0-or-later
import { Buffer } from "node:buffer";
import { cleanup, prepareExecutor } from "./attempts.ts";
import { type Build, CANCELED, type Failure } from "./build.ts";
import type { ConfigOutput } from "./config_output.ts";
import type { JobEvent } from "./events.ts";
import type { Job } from "./payload.ts";
import type { Ending, Stream } from "./process.ts";
import { runStages } from "./stages.ts";

/** A GitLab Runner with a custom executor: a section of its config.toml, and its process. */
export interface Runner {
  /** The program and arguments of each stage; null is a stage that config.toml leaves out. */
  readonly configExec: readonly string[] | null;
  readonly prepareExec: readonly string[] | null;
  readonly runExec: readonly string[];
  readonly cleanupExec: readonly string[] | null;
  /** The whole environment of the runner's process. */
  readonly environment: Readonly<Record<string, string>>;
  /** Absolute; config_exec may name others. A job needs both. */
  readonly buildsDir: string;
  readonly cacheDir: string;
  /** Of config and prepare together. There is no pause between them, which GitLab Runner makes. */
  readonly attempts: number;
  /** From SIGTERM to the end of the runner's process, whatever it leaves behind. */
  readonly shutdownSeconds: number;
  /**
   * From a cancel in GitLab until the runner hears of it, which is when it sends output, every 3 s, or
   * asks for a silent job, every 30 s. None by default, to wait for nothing.
   */
  readonly pollSeconds: number;
  /** Where the directories of attempts are made; the system's by default. */
  readonly tmpdir?: string;
  readonly onOutput?: (stage: string, stream: Stream, chunk: Uint8Array) => void;
  readonly onStage?: (record: StageRecord) => void;
}

/** What GitLab shows of a job that ended. */
export type Verdict = "success" | "script_failure" | "runner_system_failure" | "canceled";

/** One call of the driver. */
export interface StageRecord extends Ending {
  /** "config", "prepare", "cleanup", or the stage that was passed to run. */
  readonly name: string;
  readonly seconds: number;
  readonly stdout: Uint8Array;
  readonly stderr: Uint8Array;
}

/** What became of a job. */
export interface JobResult {
  readonly verdict: Verdict;
  /** The script's, if the verdict is "script_failure". */
  readonly exitCode: number | null;
  /** Why, in the runner's words; empty for a success. */
  readonly reason: string;
  /** config's stderr and both outputs of prepare and run, as they arrived. */
  readonly logText: string;
  /** What cleanup printed and what the runner adds, by line. */
  readonly runnerLog: readonly { readonly text: string }[];
  readonly stages: readonly StageRecord[];
  /** What config said in the last attempt; empty if it never came to that. */
  readonly config: ConfigOutput;
  /** The directory of each attempt. */
  readonly dirs: readonly string[];
}

/** What happens during a job. */
export interface RunOptions {
  readonly events?: readonly JobEvent[];
  /** Aborts when the runner gets SIGTERM. */
  readonly runnerStop?: AbortSignal;
}

/** What tells Deno where main.ts finds its packages, and whom to trust where it has to load them. */
export function denoVariables(): Record<string, string> {
  const all = Object.entries(Deno.env.toObject());
  return Object.fromEntries(all.filter(([name]) => name.startsWith("DENO_")));
}

/**
 * The runner of a config.toml that calls this program as libvirt-gci is called:
 * `PROGRAM GLOBAL_ARGS config`, `... prepare`, `... run --script PATH STAGE` and
 * `... cleanup`. Only PATH and HOME are in its environment, and what tells Deno where
 * main.ts finds its packages.
 */
export function runnerFor(
  program: readonly string[],
  globalArgs: readonly string[],
  settings: Partial<Runner> = {},
): Runner {
  const call = [...program, ...globalArgs];
  return {
    configExec: [...call, "config"],
    prepareExec: [...call, "prepare"],
    runExec: [...call, "run", "--script"],
    cleanupExec: [...call, "cleanup"],
    environment: {
      PATH: Deno.env.get("PATH") ?? "/usr/bin:/bin",
      HOME: Deno.env.get("HOME") ?? "/",
      ...denoVariables(),
    },
    buildsDir: "",
    cacheDir: "",
    attempts: 3,
    shutdownSeconds: 30,
    pollSeconds: 0,
    ...settings,
  };
}

/**
 * Runs one job to its end, as GitLab Runner does. Throws if an event's function
 * throws, and if an event's time never came: a test that waits for it is wrong.
 */
export async function runJob(
  runner: Runner,
  job: Job,
  { events = [], runnerStop = new AbortController().signal }: RunOptions = {},
): Promise<JobResult> {
  const actions: Promise<void>[] = [];
  const timers: ReturnType<typeof setTimeout>[] = [];
  const build: Build = {
    runner,
    job,
    stop: new AbortController(),
    interrupt: runnerStop,
    softCancel: () => build.stop.abort(),
    pendingEvents: new Set(events),
    fire: (action, attempt) => {
      if (typeof action === "function") {
        const done = (async () => await action(attempt))();
        done.catch(() => build.stop.abort()); // the error is thrown below
        actions.push(done);
        return;
      }
      const cancel = (): void => action === "soft_cancel" ? build.softCancel() : build.stop.abort();
      if (runner.pollSeconds === 0) cancel();
      else timers.push(setTimeout(cancel, runner.pollSeconds * 1000));
    },
    log: [],
    runnerLog: [],
    stages: [],
    attempts: [],
  };
  const failure = await runBuild(build).finally(() =>
    timers.forEach((timer) => clearTimeout(timer))
  );
  await Promise.all(actions);
  const result = resultOf(build, failure);
  if (build.pendingEvents.size > 0) {
    const points = [...build.pendingEvents].map(({ action: _, ...point }) => point);
    throw new Error(
      `These events never came: ${JSON.stringify(points)}. The job ended with ` +
        `${result.verdict} (${result.reason}) and this log:\n${result.logText}`,
    );
  }
  return result;
}

async function runBuild(build: Build): Promise<Failure | null> {
  const prepared = await prepareExecutor(build);
  if ("verdict" in prepared) return prepared;
  const failure = await runStages(build, prepared);
  const stopFailure = failureOfStop(build);
  await cleanup(build, prepared);
  return stopFailure ?? failure;
}

/** Why the job was stopped from outside, if it was. */
function failureOfStop({ stop, interrupt }: Build): Failure | null {
  if (stop.signal.aborted) return CANCELED;
  if (!interrupt.aborted) return null;
  return { verdict: "runner_system_failure", reason: "aborted: the runner stops" };
}

function resultOf(build: Build, failure: Failure | null): JobResult {
  return {
    verdict: failure?.verdict ?? "success",
    exitCode: failure?.exitCode ?? null,
    reason: failure?.reason ?? "",
    logText: new TextDecoder("utf-8", { ignoreBOM: true }).decode(Buffer.concat(build.log)),
    runnerLog: build.runnerLog,
    stages: build.stages,
    config: build.attempts.at(-1)?.config ?? {},
    dirs: build.attempts.map(({ dir }) => dir),
  };
}
