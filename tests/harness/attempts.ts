// SPDX-License-Identifier: GPL-2.0-or-later
import { type Attempt, type Build, CANCELED, type Failure, runStage } from "./build.ts";
import { parseConfigOutput } from "./config_output.ts";
import { responseJson } from "./payload.ts";

/**
 * Calls config and prepare, with a new directory for each attempt, until they
 * succeed. Resolves with that attempt, not cleaned up, or with why there is none.
 */
export async function prepareExecutor(build: Build): Promise<Attempt | Failure> {
  for (let left = build.runner.attempts - 1;; left--) {
    const attempt = await startAttempt(build);
    const failure = await configure(build, attempt) ?? await prepare(build, attempt);
    if (!failure) return attempt;
    await cleanup(build, attempt);
    if (failure.verdict === "script_failure") return failure;
    if (build.stop.signal.aborted) return CANCELED;
    if (left <= 0) return failure;
    build.runnerLog.push({ text: `Preparation failed: ${failure.reason}` });
  }
}

async function startAttempt({ runner, job, attempts }: Build): Promise<Attempt> {
  const dir = await Deno.makeTempDir({ dir: runner.tmpdir, prefix: "custom-executor" });
  await Deno.writeTextFile(`${dir}/response.json`, responseJson(job), { mode: 0o600 });
  const attempt = { dir, place: { buildsDir: "", projectDir: "" }, config: {} };
  attempts.push(attempt);
  return attempt;
}

async function configure(build: Build, attempt: Attempt): Promise<Failure | null> {
  const { runner, job, stop: { signal: stop } } = build;
  if (runner.configExec) {
    const call = { name: "config", argv: runner.configExec, attempt, stop };
    const { record, failure } = await runStage(build, call);
    if (failure) return failure;
    try {
      attempt.config = parseConfigOutput(record.stdout);
    } catch (error) {
      const reason = `error while parsing JSON output: ${error}`;
      return { verdict: "runner_system_failure", reason };
    }
  }
  const buildsDir = attempt.config.builds_dir ?? runner.buildsDir;
  const cacheDir = attempt.config.cache_dir ?? runner.cacheDir;
  if (!buildsDir || !cacheDir) {
    // A "build error" to the runner, and so the job's fault.
    return { verdict: "script_failure", reason: "builds_dir or cache_dir is not configured" };
  }
  attempt.place = { buildsDir, projectDir: `${buildsDir}/project-${job.projectId}` };
  return null;
}

async function prepare(build: Build, attempt: Attempt): Promise<Failure | null> {
  const { runner: { prepareExec: argv }, stop: { signal: stop } } = build;
  if (!argv) return null;
  return (await runStage(build, { name: "prepare", argv, attempt, stop })).failure;
}

/** Calls cleanup, which nothing interrupts, and removes the directory. */
export async function cleanup(build: Build, attempt: Attempt): Promise<void> {
  const { runner: { cleanupExec: argv }, runnerLog } = build;
  if (argv) {
    const stop = new AbortController().signal;
    const { record, failure } = await runStage(build, { name: "cleanup", argv, attempt, stop });
    for (const output of [record.stdout, record.stderr]) {
      const lines = new TextDecoder().decode(output).split("\n").filter((line) => line !== "");
      runnerLog.push(...lines.map((text) => ({ text })));
    }
    if (failure) runnerLog.push({ text: `Cleanup script failed: ${failure.reason}` });
  }
  await Deno.remove(attempt.dir, { recursive: true }).catch(() => {}); // Nor does the runner mind.
}
