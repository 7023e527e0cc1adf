// SPDX-License-Identifier: GPL-2.0-or-later
import { type Attempt, type Build, type Failure, runStage } from "./build.ts";
import { jobVariables, lookupVariable } from "./payload.ts";
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
  const stop = AbortSignal.any([build.stop.signal, build.interrupt.signal]);
  const sequence: Sequence = { build, attempt, stop, jobStatus: "running" };

  const unprepared = await runScript(sequence, "prepare_script");
  if (unprepared) return unprepared;

  const failure = await tryScript(sequence, "get_sources", "GET_SOURCES_ATTEMPTS") ??
    await tryScript(sequence, "restore_cache", "RESTORE_CACHE_ATTEMPTS") ??
    await tryScript(sequence, "download_artifacts", "ARTIFACT_DOWNLOAD_ATTEMPTS") ??
    await runUserScripts(sequence);

  const unarchived = await runScript(
    sequence,
    failure ? "archive_cache_on_failure" : "archive_cache",
  );
  const notUploaded = await runScript(
    sequence,
    failure ? "upload_artifacts_on_failure" : "upload_artifacts_on_success",
  );
  await runScript(sequence, "cleanup_file_variables");
  return failure ?? unarchived ?? notUploaded;
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
  if (cancel.signal.aborted) failure = { verdict: "canceled", reason: "canceled" };

  sequence.jobStatus = !failure
    ? "success"
    : failure.verdict === "canceled"
    ? "canceled"
    : "failed";
  await runScript(sequence, "after_script");
  return failure;
}

/** As often as the job's variable says, once by default. */
async function tryScript(
  sequence: Sequence,
  name: string,
  attemptsKey: string,
): Promise<Failure | null> {
  const { build: { job }, attempt: { place } } = sequence;
  const attempts = Number(lookupVariable(jobVariables(job, place, ""), attemptsKey) ?? 1);
  if (!(attempts >= 1 && attempts <= 10)) {
    return { verdict: "runner_system_failure", reason: `${attemptsKey} is not in [1, 10]` };
  }
  let failure: Failure | null = null;
  for (let count = 0; count < attempts; count++) {
    if (name === "get_sources" && count === 1) {
      failure = await runScript(sequence, "clear_worktree");
      if (failure) continue;
    }
    failure = await runScript(sequence, name);
    if (!failure) break;
  }
  return failure;
}

async function runScript(
  sequence: Sequence,
  name: string,
  stop = sequence.stop,
): Promise<Failure | null> {
  if (stop.aborted) return { verdict: "canceled", reason: "stopped" };
  const { build, attempt, jobStatus } = sequence;
  const { job, runner } = build;
  const { config, place } = attempt;
  const script = scriptFor(name, {
    job,
    place,
    variables: jobVariables(job, place, jobStatus),
    shell: config.shell ?? runner.shell,
    hostname: config.hostname,
  });
  if (script === null) return null;

  const dir = await Deno.makeTempDir({ dir: attempt.dir, prefix: "script" });
  const path = `${dir}/script`;
  await Deno.writeTextFile(path, script, { mode: 0o700 });
  const argv = [...runner.runExec, path, name];
  const { failure } = await runStage(build, { name, argv, attempt, stop, jobStatus });
  return failure;
}
