// SPDX-License-Identifier: GPL-2.0-or-later
import { type Attempt, type Build, CANCELED, type Failure, runStage } from "./build.ts";
import { jobVariables } from "./payload.ts";
import { scriptFor } from "./script.ts";

/** The part of a job between prepare and cleanup, as one after another script sees it. */
interface Sequence {
  readonly build: Build;
  readonly attempt: Attempt;
  /** Aborts when no further script may run. */
  readonly stop: AbortSignal;
  /** CI_JOB_STATUS. */
  jobStatus: string;
}

/** Runs a job's scripts in GitLab's order. Resolves with what failed the job, or null. */
export async function runStages(build: Build, attempt: Attempt): Promise<Failure | null> {
  const stop = AbortSignal.any([build.stop.signal, build.interrupt]);
  const sequence: Sequence = { build, attempt, stop, jobStatus: "running" };

  const unprepared = await runScript(sequence, "prepare_script");
  if (unprepared) return unprepared;
  const failure = await runScript(sequence, "get_sources") ?? await runUserScripts(sequence);
  await runScript(sequence, "cleanup_file_variables");
  return failure;
}

async function runUserScripts(sequence: Sequence): Promise<Failure | null> {
  const { build, stop } = sequence;
  // From here to the end, a soft cancel ends the script and nothing else.
  const cancel = new AbortController();
  build.softCancel = () => cancel.abort();
  const scriptStop = AbortSignal.any([stop, cancel.signal]);

  let failure: Failure | null = null;
  const steps = Object.keys(build.job.steps ?? {}).map((name) => `step_${name}`);
  for (const name of ["build_script", ...steps]) {
    failure = await runScript(sequence, name, scriptStop);
    if (failure) break;
  }
  if (cancel.signal.aborted) failure = CANCELED;
  const failedStatus = failure?.verdict === "canceled" ? "canceled" : "failed";
  sequence.jobStatus = failure === null ? "success" : failedStatus;
  await runScript(sequence, "after_script");
  return failure;
}

async function runScript(
  sequence: Sequence,
  name: string,
  stop = sequence.stop,
): Promise<Failure | null> {
  if (stop.aborted) return CANCELED;
  const { build, attempt, jobStatus } = sequence;
  const { place } = attempt;
  const { job, runner } = build;
  const variables = jobVariables(job, place, jobStatus);
  const shell = attempt.config.shell ?? "bash";
  const script = scriptFor(name, { job, place, variables, shell });
  if (script === null) return null;

  const dir = await Deno.makeTempDir({ dir: attempt.dir, prefix: "script" });
  const path = `${dir}/script`;
  await Deno.writeTextFile(path, script, { mode: 0o700 });
  const argv = [...runner.runExec, path, name];
  return (await runStage(build, { name, argv, attempt, stop, jobStatus })).failure;
}
