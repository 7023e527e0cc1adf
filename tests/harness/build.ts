// SPDX-License-Identifier: GPL-2.0-or-later
import { Buffer } from "node:buffer";
import { orMissing } from "../../src/files.ts";
import type { ConfigOutput } from "./config_output.ts";
import { type Action, type JobEvent, watchStage } from "./events.ts";
import { type Job, jobVariables, type Place, servicesJson } from "./payload.ts";
import { runProcess, type Stream } from "./process.ts";
import type { Runner, StageRecord, Verdict } from "./runner.ts";

/** A job that runs, and all that is known of it so far. */
export interface Build {
  readonly runner: Runner;
  readonly job: Job;
  /** Aborts when the job is cancelled. */
  readonly stop: AbortController;
  /** Aborts when the runner is asked to stop; only the stages of run notice. */
  readonly interrupt: AbortSignal;
  /** What a soft cancel does now. */
  softCancel: () => void;
  readonly pendingEvents: Set<JobEvent>;
  readonly fire: (action: Action, attempt: Attempt) => void;
  readonly log: Uint8Array[];
  readonly runnerLog: { readonly text: string }[];
  readonly stages: StageRecord[];
  readonly attempts: Attempt[];
}

/** One attempt: one directory, one machine. Its config is empty until config has told. */
export interface Attempt {
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

export const CANCELED: Failure = { verdict: "canceled", reason: "canceled" };

/** A call of the driver. */
export interface StageCall {
  readonly name: string;
  readonly argv: readonly string[];
  readonly attempt: Attempt;
  readonly stop: AbortSignal;
  /** The value of CI_JOB_STATUS. */
  readonly jobStatus?: string;
}

/** Calls the driver once, records it, and says how it failed, if it did. */
export async function runStage(
  build: Build,
  call: StageCall,
): Promise<{ readonly record: StageRecord; readonly failure: Failure | null }> {
  const { runner, pendingEvents, fire } = build;
  const { name, argv, attempt, stop } = call;
  const started = performance.now();
  const outputs: Readonly<Record<Stream, Uint8Array[]>> = { stdout: [], stderr: [] };
  const running = runProcess({
    argv,
    env: environmentOf(build, call),
    cwd: attempt.dir,
    stop,
    onOutput: (stream, chunk) => {
      outputs[stream].push(chunk);
      if (isForJobLog(name, stream)) build.log.push(chunk);
      runner.onOutput?.(name, stream, chunk);
      watch.onOutput(stream, chunk);
    },
  });
  const watch = watchStage(pendingEvents, name, (action) => fire(action, attempt));
  const ending = await running.finally(watch.end);

  const record: StageRecord = {
    name,
    ...ending,
    seconds: (performance.now() - started) / 1000,
    stdout: new Uint8Array(Buffer.concat(outputs.stdout)),
    stderr: new Uint8Array(Buffer.concat(outputs.stderr)),
  };
  build.stages.push(record);
  runner.onStage?.(record);
  return { record, failure: await failureOf(record, attempt) };
}

function environmentOf({ runner, job }: Build, call: StageCall): Record<string, string> {
  const { dir, place, config } = call.attempt;
  const variables = [
    ...jobVariables(job, place, call.jobStatus ?? "running"),
    { key: "CI_JOB_SERVICES", value: servicesJson(job) },
  ];
  return {
    ...runner.environment,
    TMPDIR: dir,
    BUILD_FAILURE_EXIT_CODE: "1",
    SYSTEM_FAILURE_EXIT_CODE: "2",
    BUILD_EXIT_CODE_FILE: buildExitCodeFile(dir),
    JOB_RESPONSE_FILE: `${dir}/response.json`,
    ...config.job_env,
    ...Object.fromEntries(variables.map(({ key, value }) => [`CUSTOM_ENV_${key}`, value])),
  };
}

function isForJobLog(stage: string, stream: Stream): boolean {
  return stage === "config" ? stream === "stderr" : stage !== "cleanup";
}

async function failureOf(
  { name, exitStatus, signal }: StageRecord,
  { dir }: Attempt,
): Promise<Failure | null> {
  if (exitStatus === 0) return null;
  if (exitStatus === 1) return await buildFailure(dir);
  const reason = `${name}: ${signal ?? `exit status ${exitStatus}`}`;
  return { verdict: "runner_system_failure", reason };
}

async function buildFailure(dir: string): Promise<Failure> {
  const text = await orMissing(Deno.readTextFile(buildExitCodeFile(dir)));
  const [line = ""] = (text ?? "1").split(/\r?\n/);
  if (!/^[+-]?\d+$/.test(line)) {
    const reason = `BUILD_EXIT_CODE_FILE holds ${JSON.stringify(line)}`;
    return { verdict: "runner_system_failure", reason };
  }
  return { verdict: "script_failure", exitCode: Number(line), reason: `exit status ${line}` };
}

function buildExitCodeFile(dir: string): string {
  return `${dir}/build_exit_code`;
}
