// SPDX-License-Identifier: GPL-2.0-or-later
import { type ConfigOutput } from "./config_output.ts";
import { type Action, type JobEvent, type RunningStage, watchStage } from "./events.ts";
import { type Job, type JobVariable, jobVariables, type Place, servicesJson } from "./payload.ts";
import { type Orphan, runProcess, type Stream } from "./process.ts";
import { concat, type Value } from "./quote.ts";
import type { Runner, StageRecord, Verdict } from "./runner.ts";

/** A job that runs, and all that is known of it so far. */
export interface Build {
  readonly runner: Runner;
  readonly job: Job;
  /** Aborts when the job is cancelled or its time is over; see {@linkcode stopJob}. */
  readonly stop: AbortController;
  stopVerdict: Verdict | null;
  /** Aborts when the runner is asked to stop; only the stages of run notice. */
  readonly interrupt: AbortController;
  /** Aborts when the runner is dead. */
  readonly gone: AbortController;
  /** What a soft cancel does now. */
  softCancel: () => void;
  readonly pendingEvents: Set<JobEvent>;
  readonly fire: (action: Action, stage: RunningStage) => void;
  readonly log: Uint8Array[];
  readonly runnerLog: { level: "debug" | "warning"; text: string }[];
  readonly stages: StageRecord[];
  readonly attempts: Attempt[];
  readonly orphans: Orphan[];
}

/** One attempt: one directory, one machine. Its config is empty until config has told. */
export interface Attempt {
  readonly number: number;
  readonly dir: string;
  place: Place;
  config: ConfigOutput;
}

/** Why something ended early. */
export interface Failure {
  readonly verdict: Verdict;
  readonly exitCode?: number;
  readonly reason: string;
}

/** Thrown where the runner's process would have ended. */
export class RunnerGone extends Error {}

/** A call of the driver. */
export interface StageCall {
  readonly name: string;
  readonly argv: readonly string[];
  readonly attempt: Attempt;
  readonly stop: AbortSignal;
  /** The value of CI_JOB_STATUS. */
  readonly jobStatus?: string;
}

/** Ends what runs for the job; the first reason is its verdict. */
export function stopJob(build: Build, verdict: Verdict): void {
  build.stopVerdict ??= verdict;
  build.stop.abort();
}

/** Calls the driver once, records it, and says how it failed, if it did. */
export async function runStage(
  build: Build,
  call: StageCall,
): Promise<{ readonly record: StageRecord; readonly failure: Failure | null }> {
  const { runner } = build;
  const started = performance.now();
  const outputs: Readonly<Record<Stream, Uint8Array[]>> = { stdout: [], stderr: [] };
  let watch: ReturnType<typeof watchStage> | null = null;
  const ending = await runProcess({
    argv: call.argv,
    environment: environmentOf(build, call),
    cwd: call.attempt.dir,
    stop: call.stop,
    gone: build.gone.signal,
    gracefulKillSeconds: runner.gracefulKillSeconds,
    forceKillSeconds: runner.forceKillSeconds,
    onStart: (pid) => {
      const { name, attempt: { number, dir } } = call;
      watch = watchStage(build.pendingEvents, { name, attempt: number, pid, dir }, build.fire);
    },
    onOutput: (stream, chunk) => {
      outputs[stream].push(chunk);
      if (isForJobLog(call.name, stream)) build.log.push(chunk);
      runner.onOutput?.(call.name, stream, chunk);
      watch?.onOutput(stream, chunk);
    },
  }).finally(() => watch?.end());

  const { orphan, ...rest } = ending;
  const record: StageRecord = {
    name: call.name,
    attempt: call.attempt.number,
    argv: call.argv,
    ...rest,
    seconds: (performance.now() - started) / 1000,
    stdout: concat(outputs.stdout),
    stderr: concat(outputs.stderr),
  };
  build.stages.push(record);
  runner.onStage?.(record);
  if (orphan) build.orphans.push(orphan);
  if (build.gone.signal.aborted) throw new RunnerGone();
  return { record, failure: await failureOf(record, call.attempt) };
}

function environmentOf({ runner, job }: Build, call: StageCall): Map<string, Value> {
  const { dir, place, config } = call.attempt;
  const variables: JobVariable[] = [
    ...jobVariables(job, place, call.jobStatus ?? "running"),
    { key: "CI_JOB_SERVICES", value: servicesJson(job.services) },
  ];
  return new Map<string, Value>([
    ...Object.entries(runner.environment),
    ["TMPDIR", dir],
    ["BUILD_FAILURE_EXIT_CODE", "1"],
    ["SYSTEM_FAILURE_EXIT_CODE", "2"],
    ["BUILD_EXIT_CODE_FILE", buildExitCodeFile(dir)],
    ["JOB_RESPONSE_FILE", `${dir}/response.json`],
    ...Object.entries(config.jobEnv ?? {}),
    ...variables.map(({ key, value }) => [`CUSTOM_ENV_${key}`, value] as const),
  ]);
}

function isForJobLog(stage: string, stream: Stream): boolean {
  return stage === "config" ? stream === "stderr" : stage !== "cleanup";
}

async function failureOf(record: StageRecord, { dir }: Attempt): Promise<Failure | null> {
  const { exitStatus, signal } = record;
  if (exitStatus === 0) return null;
  if (exitStatus === 1) return await buildFailure(dir);
  const reason = exitStatus === null
    ? signal ?? "its process or its outputs outlived SIGKILL"
    : `exit status ${exitStatus}`;
  return { verdict: "runner_system_failure", reason: `${record.name}: ${reason}` };
}

async function buildFailure(dir: string): Promise<Failure> {
  let text: string;
  try {
    text = await Deno.readTextFile(buildExitCodeFile(dir));
  } catch {
    return { verdict: "script_failure", exitCode: 1, reason: "exit status 1" };
  }
  const [line = ""] = text.split(/\r?\n/);
  if (!/^[+-]?\d+$/.test(line)) {
    return {
      verdict: "runner_system_failure",
      reason: `BUILD_EXIT_CODE_FILE holds ${JSON.stringify(line)}`,
    };
  }
  return { verdict: "script_failure", exitCode: Number(line), reason: `exit status ${line}` };
}

function buildExitCodeFile(dir: string): string {
  return `${dir}/build_exit_code`;
}
