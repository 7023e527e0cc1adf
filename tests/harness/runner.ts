// SPDX-License-Identifier: GPL-2.0-or-later
import { cleanup, prepareExecutor } from "./attempts.ts";
import { type Build, type Failure, RunnerGone, stopJob } from "./build.ts";
import type { ConfigOutput } from "./config_output.ts";
import type { Action, JobEvent, RunningStage } from "./events.ts";
import type { Job } from "./payload.ts";
import { aborted, type Ending, type Orphan, type Stream, within } from "./process.ts";
import { concat, toText, type Value } from "./quote.ts";
import { runStages } from "./stages.ts";

/** A GitLab Runner with a custom executor: a section of its config.toml, and its process. */
export interface Runner {
  /** The program and arguments of each stage; null is a stage that config.toml leaves out. */
  readonly configExec: readonly string[] | null;
  readonly prepareExec: readonly string[] | null;
  readonly runExec: readonly string[];
  readonly cleanupExec: readonly string[] | null;
  /** The whole environment of the runner's process. */
  readonly environment: Readonly<Record<string, Value>>;
  /** Absolute; config_exec may name others. A job needs both. */
  readonly buildsDir: string;
  readonly cacheDir: string;
  readonly shell: string;
  readonly gracefulKillSeconds: number;
  readonly forceKillSeconds: number;
  /** Of config and prepare together. */
  readonly attempts: number;
  readonly retryDelaySeconds: number;
  /** From a job's cancellation to cleanup, whether or not run has ended. */
  readonly stuckBuildSeconds: number;
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
export type Verdict =
  | "success"
  | "script_failure"
  | "runner_system_failure"
  | "canceled"
  | "job_execution_timeout";

/** One call of the driver. */
export interface StageRecord extends Omit<Ending, "orphan"> {
  /** "config", "prepare", "cleanup", or the stage that was passed to run. */
  readonly name: string;
  /** Counted from 1. */
  readonly attempt: number;
  readonly argv: readonly string[];
  readonly seconds: number;
  readonly stdout: Uint8Array;
  readonly stderr: Uint8Array;
}

/** What became of a job. */
export interface JobResult {
  /** null if the runner was gone before it could tell GitLab. */
  readonly verdict: Verdict | null;
  /** The script's, if the verdict is "script_failure". */
  readonly exitCode: number | null;
  /** Why, in the runner's words; empty for a success. */
  readonly reason: string;
  /** config's stderr and both outputs of prepare and run, as they arrived. */
  readonly log: Uint8Array;
  readonly logText: string;
  /** What cleanup printed (stdout is "debug") and what the runner adds, by line. */
  readonly runnerLog: readonly { readonly level: "debug" | "warning"; readonly text: string }[];
  readonly stages: readonly StageRecord[];
  /** What config said in the last attempt; empty if it never came to that. */
  readonly config: ConfigOutput;
  /** The directory of each attempt; they exist only after the runner left early. */
  readonly dirs: readonly string[];
  /** What outlived the runner. Whoever made it leave early ends these. */
  readonly orphans: readonly Orphan[];
}

/** What happens during a job. */
export interface RunOptions {
  readonly events?: readonly JobEvent[];
  /** Aborts the job, as a hard cancel does. */
  readonly signal?: AbortSignal;
  /** Aborts when the runner gets SIGTERM, as the event `runner_stop` does at a point of the job. */
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
 * `... cleanup`. GitLab's defaults; only PATH and HOME are in its environment, and what tells Deno where
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
    shell: "bash",
    gracefulKillSeconds: 600,
    forceKillSeconds: 10,
    attempts: 3,
    retryDelaySeconds: 3,
    stuckBuildSeconds: 300,
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
  options: RunOptions = {},
): Promise<JobResult> {
  const life = startRunner(runner, job, options);
  const { build } = life;
  let outcome: Failure | "success" | null = null;
  try {
    outcome = await runBuild(build);
  } catch (error) {
    if (!(error instanceof RunnerGone)) throw error;
  } finally {
    life.timers.forEach((timer) => clearTimeout(timer));
  }
  await Promise.all(life.actions);
  const result = resultOf(build, outcome);
  if (build.pendingEvents.size > 0) {
    const points = [...build.pendingEvents].map(({ action: _, ...point }) => point);
    throw new Error(
      `These events never came: ${JSON.stringify(points)}. The job ended with ` +
        `${result.verdict} (${result.reason}) and this log:\n${result.logText}`,
    );
  }
  return result;
}

type Timer = ReturnType<typeof setTimeout>;

/** A build, and what goes on beside it. */
interface Life {
  readonly build: Build;
  readonly actions: readonly Promise<void>[];
  readonly timers: readonly Timer[];
}

function startRunner(
  runner: Runner,
  job: Job,
  { events = [], signal, runnerStop }: RunOptions,
): Life {
  const actions: Promise<void>[] = [];
  const timers: Timer[] = [];
  const build: Build = {
    runner,
    job,
    stop: new AbortController(),
    stopVerdict: null,
    interrupt: new AbortController(),
    gone: new AbortController(),
    softCancel: () => stopJob(build, "canceled"),
    pendingEvents: new Set(events),
    fire,
    log: [],
    runnerLog: [],
    stages: [],
    attempts: [],
    orphans: [],
  };

  /** Does it when the runner has asked GitLab the next time. */
  function whenHeard(hear: () => void): void {
    if (runner.pollSeconds === 0) return hear();
    timers.push(setTimeout(hear, runner.pollSeconds * 1000));
  }

  function stopRunner(): void {
    timers.push(setTimeout(() => build.gone.abort(), runner.shutdownSeconds * 1000));
    build.interrupt.abort();
  }

  function fire(action: Action, stage: RunningStage): void {
    switch (action) {
      case "soft_cancel":
        return whenHeard(() => build.softCancel());
      case "hard_cancel":
        return whenHeard(() => stopJob(build, "canceled"));
      case "job_timeout":
        return stopJob(build, "job_execution_timeout");
      case "runner_stop":
        return stopRunner();
      case "runner_kill":
        return build.gone.abort();
    }
    const done = (async () => await action(stage))();
    done.catch(() => stopJob(build, "canceled")); // runJob throws the error in the end.
    actions.push(done);
  }

  timers.push(
    setTimeout(() => stopJob(build, "job_execution_timeout"), job.timeoutSeconds * 1000),
  );
  if (signal) aborted(signal).then(() => stopJob(build, "canceled"));
  if (runnerStop) aborted(runnerStop).then(stopRunner);
  return { build, actions, timers };
}

async function runBuild(build: Build): Promise<Failure | "success"> {
  const prepared = await prepareExecutor(build);
  if ("verdict" in prepared) return prepared;

  const stop = AbortSignal.any([build.stop.signal, build.interrupt.signal]);
  const running = runStages(build, prepared);
  running.catch(() => {}); // Awaited below, unless cleanup throws first.
  await Promise.race([running, aborted(stop)]);
  if (stop.aborted) await within(running, build.runner.stuckBuildSeconds);
  const outcome = stopFailure(build) ?? await running ?? "success";

  await cleanup(build, prepared);
  await running; // A script that outlived its job gets its SIGKILL.
  return outcome;
}

/** Why the job was stopped from outside, if it was. */
function stopFailure({ stopVerdict, interrupt }: Build): Failure | null {
  if (stopVerdict) return { verdict: stopVerdict, reason: stopVerdict };
  if (!interrupt.signal.aborted) return null;
  return { verdict: "runner_system_failure", reason: "aborted: the runner stops" };
}

function resultOf(build: Build, outcome: Failure | "success" | null): JobResult {
  const failure = outcome === "success" ? null : outcome;
  const log = concat(build.log);
  return {
    verdict: outcome === "success" ? "success" : failure?.verdict ?? null,
    exitCode: failure?.exitCode ?? null,
    reason: failure?.reason ?? "",
    log,
    logText: toText(log),
    runnerLog: build.runnerLog,
    stages: build.stages,
    config: build.attempts.at(-1)?.config ?? {},
    dirs: build.attempts.map(({ dir }) => dir),
    orphans: build.orphans,
  };
}
