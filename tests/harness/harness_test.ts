// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * What GitLab Runner does to a driver and the end-to-end tests do not see: if the stand-in did less, they
 * would pass all the same.
 */
import assert from "node:assert/strict";
import { quote } from "../../src/shell.ts";
import { sleep } from "../../src/wait.ts";
import { type Job, SMALL_JOB } from "./payload.ts";
import { type JobResult, runJob, runnerFor, type RunOptions } from "./runner.ts";
import { startRunnerProcess } from "./runner_process.ts";

// One long sleep would outlive a SIGTERM that comes just before bash starts it.
const FOREVER = "while :; do sleep 0.05; done";

/** Each stage of a driver as a piece of bash. `$dir` is a directory of the test's own. */
interface Stages {
  readonly config?: string;
  readonly prepare?: string;
  readonly run?: string;
  readonly cleanup?: string;
}

const RUN = `rm -f "$BUILD_EXIT_CODE_FILE"; bash "$script" && exit 0
  echo $? >"$BUILD_EXIT_CODE_FILE"; exit "$BUILD_FAILURE_EXIT_CODE"`;

/** A runner whose driver runs the scripts on this machine, until it is disposed of. */
async function openDriver({ config, prepare = ":", run = RUN, cleanup = ":" }: Stages = {}) {
  const dir = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const answer = JSON.stringify({ builds_dir: `${dir}/builds`, cache_dir: `${dir}/cache` });
  const driver = `#!/usr/bin/env bash
    dir=${dir} stage=$1 script=$3
    case $1 in
      config) ${config ?? `echo ${quote(answer)}`} ;;
      prepare) ${prepare} ;;
      run) stage=$4; ${run} ;;
      cleanup) ${cleanup} ;;
    esac`;
  await Deno.writeTextFile(`${dir}/driver`, driver, { mode: 0o755 });
  const tmpdir = `${dir}/tmp`;
  await Deno.mkdir(tmpdir);
  return {
    dir,
    runner: runnerFor([`${dir}/driver`], [], { tmpdir, shutdownSeconds: 0.2 }),
    [Symbol.asyncDispose]: () => Deno.remove(dir, { recursive: true }),
  };
}

/** Runs a job, small but for these differences, with a driver of these stages. */
async function runWith(
  stages: Stages,
  job: Partial<Job> = {},
  options: RunOptions = {},
): Promise<JobResult> {
  await using driver = await openDriver(stages);
  return await runJob(driver.runner, { ...SMALL_JOB, ...job }, options);
}

function stageNames({ stages }: JobResult): string {
  return stages.map(({ name }) => name).join(" ");
}

function outputOf({ stages }: JobResult, name: string): string {
  return new TextDecoder().decode(stages.find((it) => it.name === name)?.stdout);
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

Deno.test("a job calls config, prepare, a script per stage and cleanup, and leaves nothing", async () => {
  await using driver = await openDriver();
  const job = { ...SMALL_JOB, steps: { release: ["true"] }, afterScript: ["true"] };
  const result = await runJob(driver.runner, job);
  assert.equal(result.verdict, "success", result.logText);
  assert.equal(
    stageNames(result),
    "config prepare prepare_script get_sources build_script step_release after_script " +
      "cleanup_file_variables cleanup",
  );
  assert.equal(outputOf(result, "build_script"), "\x1b[32;1m$ echo hi\x1b[0;m\nhi\n");
  assert.equal(await exists(result.dirs[0] ?? ""), false);
});

Deno.test("scripts stop at the first failure, of a pipe too, and after_script still runs", async () => {
  const script = ["echo a\necho b", "(exit 42) | true", "echo never"];
  const result = await runWith({}, { script, afterScript: ["echo $CI_JOB_STATUS", "false"] });
  assert.deepEqual([result.verdict, result.exitCode], ["script_failure", 42]);
  assert.match(result.logText, /\na\nb\n/);
  assert.match(result.logText, /\nfailed\n/);
  assert.doesNotMatch(result.logText, /\nnever\n/);
});

Deno.test("every failed attempt is cleaned up before the next, in a directory of its own", async () => {
  const result = await runWith({ prepare: "pwd; exit 2", cleanup: "pwd" });
  assert.equal(result.verdict, "runner_system_failure");
  assert.equal(stageNames(result), Array(3).fill("config prepare cleanup").join(" "));
  const told = result.stages.flatMap(({ stdout }, i) =>
    i % 3 === 0 ? [] : new TextDecoder().decode(stdout).trim()
  );
  assert.deepEqual(told, result.dirs.flatMap((dir) => [dir, dir]));
  assert.equal(new Set(result.dirs).size, 3);
});

Deno.test("exit 1 of prepare is the job's fault and is not retried", async () => {
  const result = await runWith({ prepare: "echo no such template >&2; exit 1" });
  assert.equal(result.verdict, "script_failure");
  assert.equal(stageNames(result), "config prepare cleanup");
  assert.equal(result.logText, "no such template\n");
});

Deno.test("anything but one JSON object of the right types on config's stdout fails the job", async () => {
  for (
    const stdout of [
      "Welcome\n{}",
      "{} {}",
      "\n",
      '{"builds_dir": 1}',
      '{"job_env": {"A": 1}}',
      '{"shell": "fish"}',
    ]
  ) {
    const result = await runWith({ config: `printf %s ${quote(stdout)}` });
    assert.equal(result.verdict, "runner_system_failure", stdout);
    assert.equal(stageNames(result), Array(3).fill("config cleanup").join(" "));
  }
});

Deno.test("the last of several variables with one name wins", async () => {
  const answer = {
    builds_dir: "/b",
    cache_dir: "/c",
    job_env: { SYSTEM_FAILURE_EXIT_CODE: "3", OURS: "config", CUSTOM_ENV_DISTRO: "config" },
  };
  const config = `echo ${quote(JSON.stringify(answer))}`;
  await using driver = await openDriver({ config, prepare: "env -0; exit 1" });
  const environment = {
    ...driver.runner.environment,
    TMPDIR: "runner",
    OURS: "runner",
    JOB_RESPONSE_FILE: "runner",
    CUSTOM_ENV_CI_JOB_ID: "runner",
  };
  const lines = "a\n b'\"\\ $HOME `id` \u00e4\t!\n\n";
  const forged = {
    CI_JOB_ID: "../../evil",
    CI_JOB_IMAGE: "forged",
    CI_JOB_SERVICES: "forged",
    CI_SHARED_ENVIRONMENT: "forged",
    OURS: "forged",
    DISTRO: "debian-12",
    LINES: lines,
  };
  const variables = Object.entries(forged).map(([key, value]) => ({ key, value }));
  const job = { ...SMALL_JOB, image: "debian-12", variables };
  const result = await runJob({ ...driver.runner, environment }, job);
  const [dir] = result.dirs;
  const expected = {
    TMPDIR: dir,
    JOB_RESPONSE_FILE: `${dir}/response.json`,
    BUILD_EXIT_CODE_FILE: `${dir}/build_exit_code`,
    BUILD_FAILURE_EXIT_CODE: "1",
    SYSTEM_FAILURE_EXIT_CODE: "3",
    OURS: "config",
    CUSTOM_ENV_OURS: "forged",
    CUSTOM_ENV_DISTRO: "debian-12",
    CUSTOM_ENV_CI_JOB_ID: "../../evil",
    CUSTOM_ENV_CI_JOB_IMAGE: "forged",
    CUSTOM_ENV_CI_JOB_SERVICES: "",
    CUSTOM_ENV_CI_SHARED_ENVIRONMENT: "true",
    CUSTOM_ENV_CI_PROJECT_NAME: "proj",
    CUSTOM_ENV_CI_PROJECT_DIR: "/b/project-99",
    CUSTOM_ENV_LINES: lines,
  };
  const seen = outputOf(result, "prepare").split("\0");
  const missing = Object.entries(expected).filter(([key, value]) =>
    !seen.includes(`${key}=${value}`)
  );
  assert.deepEqual(missing, [], seen.join("\n"));
});

Deno.test("scripts get values whole, and those of file variables in files that go again", async () => {
  const value = "a\n b'\"\\ $HOME `id` \u00e4\t!\n\n" + "x".repeat(100_000);
  const variables = [{ key: "VALUE", value }, { key: "IN_FILE", value, file: true }];
  const script = ['printf %s "$VALUE" | cmp - "$IN_FILE"', 'wc -c <"$IN_FILE"; echo "at $IN_FILE"'];
  const result = await runWith({}, { variables, script });
  assert.equal(result.verdict, "success", result.logText);
  assert.match(result.logText, RegExp(`\n${new TextEncoder().encode(value).length}\n`));
  const [, path] = /\nat (.*)\n/.exec(result.logText) ?? [];
  assert.equal(await exists(path ?? "/"), false);
});

Deno.test("a stage is a group leader in the attempt's directory, which is private, with no stdin", async () => {
  const result = await runWith({
    prepare: `pwd; wc -c; read -r pid _ _ _ group _ </proc/$$/stat; echo "$((pid - group))"
      stat -c %a . "$JOB_RESPONSE_FILE"; cat "$JOB_RESPONSE_FILE"`,
    run: 'stat -c %a "$script"',
  }, { variables: [{ key: "CI_JOB_ID", value: "1" }], isRefProtected: true });
  const [dir, stdin, distance, dirMode, fileMode, json] = outputOf(result, "prepare").split("\n");
  assert.deepEqual([dir, stdin, distance], [result.dirs[0], "0", "0"]);
  assert.deepEqual([dirMode, fileMode], ["700", "600"]);
  const { id, job_info, git_info } = JSON.parse(json ?? "");
  assert.deepEqual([id, job_info.project_full_path, git_info.protected], [4242, "grp/proj", true]);
  assert.equal(outputOf(result, "build_script"), "700\n");
});

Deno.test("BUILD_EXIT_CODE_FILE holds a decimal integer, or the host is to blame", async () => {
  for (
    const [write, verdict, exitCode] of [
      [":", "script_failure", 1],
      ["echo 42 >$BUILD_EXIT_CODE_FILE", "script_failure", 42],
      ["echo ' 42' >$BUILD_EXIT_CODE_FILE", "runner_system_failure", null],
      ["echo exit 42 >$BUILD_EXIT_CODE_FILE", "runner_system_failure", null],
      [">$BUILD_EXIT_CODE_FILE", "runner_system_failure", null],
    ] as const
  ) {
    const result = await runWith({ run: `${write}; exit 1` });
    assert.deepEqual([result.verdict, result.exitCode], [verdict, exitCode], write);
  }
});

Deno.test("a status that run should not end with is the host's fault", async () => {
  for (const end of ["exit 2", "exit 3", "exit 255", "kill -9 $$"]) {
    const result = await runWith({ run: `[ "$stage" != build_script ] || ${end}` });
    assert.equal(result.verdict, "runner_system_failure", end);
    assert.match(stageNames(result), /build_script cleanup_file_variables cleanup$/);
  }
});

Deno.test("cleanup does not change the verdict, and prints to the runner's log", async () => {
  const result = await runWith({ cleanup: "echo freed; echo odd >&2; exit 3" });
  assert.equal(result.verdict, "success");
  const texts = result.runnerLog.map(({ text }) => text);
  assert.deepEqual(texts, ["freed", "odd", "Cleanup script failed: cleanup: exit status 3"]);
  assert.doesNotMatch(result.logText, /freed|odd/);
});

Deno.test("a stage lasts until nobody holds its outputs any longer", async () => {
  const result = await runWith({ prepare: "(sleep 0.3; echo late) & exit 0" });
  assert.equal(outputOf(result, "prepare"), "late\n");
});

Deno.test("a hard cancel sends SIGTERM to the whole group", async () => {
  const result = await runWith(
    {
      prepare: `trap 'echo parent got it; wait; exit 3' TERM
      (trap 'echo child got it; exit' TERM; echo up; ${FOREVER}) &
      ${FOREVER}`,
    },
    {},
    { events: [{ stage: "prepare", whenOutput: "up", action: "hard_cancel" }] },
  );
  assert.equal(result.verdict, "canceled");
  assert.equal(stageNames(result), "config prepare cleanup");
  assert.match(outputOf(result, "prepare"), /parent got it/);
  assert.match(outputOf(result, "prepare"), /child got it/);
});

Deno.test("a soft cancel ends the script, and after_script follows in the same machine", async () => {
  await using driver = await openDriver();
  const script = ["touch here", "echo up; sleep 0.3; echo goes on", FOREVER];
  const job = { ...SMALL_JOB, script, afterScript: ["ls", "echo status $CI_JOB_STATUS"] };
  const events = [{ stage: "build_script", whenOutput: "\nup", action: "soft_cancel" }] as const;
  for (const pollSeconds of [0, 0.5]) {
    const result = await runJob({ ...driver.runner, pollSeconds }, job, { events });
    assert.equal(result.verdict, "canceled");
    assert.match(stageNames(result), /build_script after_script cleanup_file_variables cleanup$/);
    assert.match(outputOf(result, "after_script"), /\nhere\n[^]*\nstatus canceled\n$/);
    assert.equal(/\ngoes on\n/.test(result.logText), pollSeconds > 0);
  }
});

Deno.test("a soft cancel before the script ends the job, and one after it does nothing", async () => {
  const run = `echo "at $stage"; ${RUN}`;
  const job = { afterScript: ["true"] };
  const at = { whenOutput: "at", action: "soft_cancel" } as const;
  const early = await runWith({ run }, job, { events: [{ stage: "get_sources", ...at }] });
  assert.equal(early.verdict, "canceled");
  assert.match(stageNames(early), /get_sources cleanup$/);
  const late = await runWith({ run }, job, { events: [{ stage: "after_script", ...at }] });
  assert.equal(late.verdict, "success");
});

for (const signal of ["SIGTERM", "SIGKILL"] as const) {
  Deno.test(`a runner whose process ends by ${signal} leaves prepare and its directory`, async () => {
    await using driver = await openDriver({
      prepare: `trap 'touch "$dir/term"' TERM; echo "$PPID $$ $TMPDIR"
        while [ ! -e "$dir/go" ]; do sleep 0.01; done; ps -o ppid= $$ > "$dir/parent"`,
    });
    await using runner = startRunnerProcess(driver.runner, SMALL_JOB);
    const printed = await runner.printed(/^\d+ .*\n/m);
    const [, parent, pid, attempt] = /^(\d+) (\d+) (.*)\n/m.exec(printed) ?? [];
    await runner.end(signal);
    assert.equal(await exists(`/proc/${parent}`), false);
    assert.equal(await exists(`/proc/${pid}`), true);
    await Deno.writeTextFile(`${driver.dir}/go`, "");
    while (await exists(`/proc/${pid}`)) await sleep(10);
    assert.notEqual((await Deno.readTextFile(`${driver.dir}/parent`)).trim(), parent);
    assert.equal(await exists(`${driver.dir}/term`), false);
    assert.equal(await exists(`${attempt}/response.json`), true);
  });
}

Deno.test("a runner that gets SIGTERM ends a script, and then its process after cleanup", async () => {
  await using driver = await openDriver({ cleanup: 'touch "$dir/clean"' });
  const job = { ...SMALL_JOB, script: ["echo up", FOREVER] };
  await using runner = startRunnerProcess({ ...driver.runner, shutdownSeconds: 60 }, job);
  await runner.printed(/^up$/m);
  await runner.end("SIGTERM");
  assert.equal(await exists(`${driver.dir}/clean`), true);
});

Deno.test("runJob() throws what an event's function throws, after cleanup", async () => {
  await using driver = await openDriver({ cleanup: 'touch "$dir/clean"' });
  const action = (): never => {
    throw new Error("no such guest");
  };
  const events = [{ stage: "build_script", action }];
  const running = runJob(driver.runner, { ...SMALL_JOB, script: [FOREVER] }, { events });
  await assert.rejects(running, /no such guest/);
  assert.equal(await exists(`${driver.dir}/clean`), true);
});

Deno.test("runJob() throws if an event's time never came", async () => {
  const events = [{
    stage: "build_script",
    whenOutput: "no such text",
    action: "soft_cancel",
  }] as const;
  await assert.rejects(runWith({}, {}, { events }), /no such text.*success/s);
});
