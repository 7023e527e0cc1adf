// SPDX-License-Identifier: GPL-2.0-or-later
import { type Attempt, type Build, type Failure, RunnerGone, runStage } from "./build.ts";
import { parseConfigOutput } from "./config_output.ts";
import { projectPath, responseJson } from "./payload.ts";
import { aborted, within } from "./process.ts";
import { toText } from "./quote.ts";

/**
 * Calls config and prepare, with a new directory for each attempt, until they
 * succeed. Resolves with that attempt, not cleaned up, or with why there is none.
 */
export async function prepareExecutor(build: Build): Promise<Attempt | Failure> {
  const { runner } = build;
  for (let number = 1;; number++) {
    const attempt = await startAttempt(build, number);
    const failure = await configure(build, attempt) ?? await prepare(build, attempt);
    if (!failure) return attempt;
    await cleanup(build, attempt);
    if (failure.verdict === "script_failure") return failure;
    if (build.stopVerdict) return { verdict: build.stopVerdict, reason: failure.reason };
    if (number >= runner.attempts) return failure;
    build.runnerLog.push({ level: "warning", text: `Preparation failed: ${failure.reason}` });
    await within(aborted(build.gone.signal), runner.retryDelaySeconds);
    if (build.gone.signal.aborted) throw new RunnerGone();
  }
}

async function startAttempt({ runner, job, attempts }: Build, number: number): Promise<Attempt> {
  const dir = await Deno.makeTempDir({ dir: runner.tmpdir, prefix: "custom-executor" });
  await Deno.writeTextFile(`${dir}/response.json`, responseJson(job), { mode: 0o600 });
  const place = { buildsDir: "", cacheDir: "", projectDir: "" };
  const attempt = { number, dir, place, config: {} };
  attempts.push(attempt);
  return attempt;
}

async function configure(build: Build, attempt: Attempt): Promise<Failure | null> {
  const { runner, job } = build;
  if (runner.configExec) {
    const { record, failure } = await runStage(build, {
      name: "config",
      argv: runner.configExec,
      attempt,
      stop: build.stop.signal,
    });
    if (failure) return failure;
    try {
      attempt.config = parseConfigOutput(record.stdout);
    } catch (error) {
      const reason = `error while parsing JSON output: ${error}`;
      return { verdict: "runner_system_failure", reason };
    }
  }
  const { config } = attempt;
  const buildsDir = config.buildsDir ?? runner.buildsDir;
  const cacheDir = config.cacheDir ?? runner.cacheDir;
  const shell = config.shell ?? runner.shell;
  if (!buildsDir || !cacheDir) {
    // A "build error" to the runner, and so the job's fault.
    return { verdict: "script_failure", reason: "builds_dir or cache_dir is not configured" };
  }
  if (shell !== "bash" && shell !== "sh") {
    return { verdict: "runner_system_failure", reason: `shell ${shell} not found` };
  }
  const shared = config.isBuildsDirShared ? "t3st_rnr/0/" : "";
  const projectDir = `${buildsDir}/${shared}${projectPath(job)}`;
  attempt.place = { buildsDir, cacheDir, projectDir };
  return null;
}

async function prepare(build: Build, attempt: Attempt): Promise<Failure | null> {
  const { prepareExec: argv } = build.runner;
  if (!argv) return null;
  const call = { name: "prepare", argv, attempt, stop: build.stop.signal };
  const { failure } = await runStage(build, call);
  return failure;
}

/** Calls cleanup, which nothing but the runner's death interrupts, and removes the directory. */
export async function cleanup(build: Build, attempt: Attempt): Promise<void> {
  const { runner: { cleanupExec: argv }, runnerLog } = build;
  if (argv) {
    const stop = new AbortController().signal;
    const { record, failure } = await runStage(build, { name: "cleanup", argv, attempt, stop });
    for (const text of linesOf(record.stdout)) runnerLog.push({ level: "debug", text });
    for (const text of linesOf(record.stderr)) runnerLog.push({ level: "warning", text });
    if (failure) {
      runnerLog.push({ level: "warning", text: `Cleanup script failed: ${failure.reason}` });
    }
  }
  await Deno.remove(attempt.dir, { recursive: true }).catch(() => {}); // Nor does the runner mind.
}

function linesOf(bytes: Uint8Array): string[] {
  return toText(bytes).split("\n").filter((line) => line !== "");
}
