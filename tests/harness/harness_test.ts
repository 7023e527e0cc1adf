// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { type Job, SMALL_JOB } from "./payload.ts";
import { killGroup } from "./process.ts";
import { concat, quote, toBytes, toText, type Value } from "./quote.ts";
import { type JobResult, runJob, type Runner, runnerFor } from "./runner.ts";
import { startRunnerProcess } from "./runner_process.ts";

// One long sleep would outlive a SIGTERM that comes just before bash starts it.
const FOREVER = "while :; do sleep 0.05; done";

/** Each stage of a driver as a piece of bash. */
interface Stages {
  readonly config: string;
  readonly prepare: string;
  readonly run: string;
  readonly cleanup: string;
}

/** A driver program in a directory of its own, and the runner that calls it. */
interface Bench extends AsyncDisposable {
  readonly dir: string;
  runner(settings?: Partial<Runner>): Runner;
}

/** A driver that runs the scripts on this machine. `$dir` is the bench's directory. */
async function openBench(stages: Partial<Stages> = {}): Promise<Bench> {
  const dir = await Deno.makeTempDir({ prefix: "harness-test-" });
  const tmpdir = `${dir}/tmp`;
  await Deno.mkdir(tmpdir);
  const driver = `#!/usr/bin/env bash
    dir=${quote(dir)} stage=$1 script=$3
    print_config() {
      echo "{\\"builds_dir\\": \\"$dir/builds\\", \\"cache_dir\\": \\"$dir/cache\\"\${1:+, $1}}"
    }
    run_script() {
      rm -f "$BUILD_EXIT_CODE_FILE"
      bash "$script" && exit 0
      echo $? > "$BUILD_EXIT_CODE_FILE"
      exit "$BUILD_FAILURE_EXIT_CODE"
    }
    case $1 in
      config) ${stages.config ?? "print_config"} ;;
      prepare) ${stages.prepare ?? ":"} ;;
      run) stage=$4; ${stages.run ?? "run_script"} ;;
      cleanup) ${stages.cleanup ?? ":"} ;;
    esac`;
  await Deno.writeTextFile(`${dir}/driver`, driver, { mode: 0o755 });
  return {
    dir,
    runner: (settings) =>
      runnerFor([`${dir}/driver`], [], { retryDelaySeconds: 0, tmpdir, ...settings }),
    [Symbol.asyncDispose]: () => Deno.remove(dir, { recursive: true }),
  };
}

function job(changes: Partial<Job>): Job {
  return { ...SMALL_JOB, ...changes };
}

function stageNames({ stages }: JobResult): string[] {
  return stages.map(({ name }) => name);
}

function outputOf({ stages }: JobResult, name: string, attempt = 1): string {
  const record = stages.find((it) => it.name === name && it.attempt === attempt);
  assert.ok(record, `${name} was not called`);
  return toText(record.stdout);
}

/** What `env -0` printed, byte for byte: one character is one byte. */
function environmentOf(result: JobResult, name: string): Map<string, string> {
  const record = result.stages.find((it) => it.name === name);
  const entries = latin1(record?.stdout ?? "").split("\0").filter((it) => it.includes("="));
  return new Map(
    entries.map((it) => [it.slice(0, it.indexOf("=")), it.slice(it.indexOf("=") + 1)]),
  );
}

function latin1(value: Value): string {
  return Array.from(toBytes(value), (byte) => String.fromCharCode(byte)).join("");
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

Deno.test("a job calls config, prepare, a script per stage and cleanup, and leaves nothing", async () => {
  await using bench = await openBench();
  const result = await runJob(bench.runner(), job({ script: ["echo hi", "true"] }));
  assert.equal(result.verdict, "success", result.logText);
  assert.deepEqual(stageNames(result), [
    "config",
    "prepare",
    "prepare_script",
    "get_sources",
    "build_script",
    "cleanup_file_variables",
    "cleanup",
  ]);
  assert.equal(
    outputOf(result, "build_script"),
    "\x1b[32;1m$ echo hi\x1b[0;m\nhi\n\x1b[32;1m$ true\x1b[0;m\n",
  );
  assert.equal(await exists(result.dirs[0] ?? ""), false);
});

Deno.test("run gets the path of an executable script and the name of its stage", async () => {
  await using bench = await openBench({ run: 'stat -c %a "$script"; run_script' });
  const result = await runJob(bench.runner(), SMALL_JOB);
  const record = result.stages.find(({ name }) => name === "build_script");
  const [program, run, option, path, stage] = record?.argv ?? [];
  assert.deepEqual([program, run, option], [`${bench.dir}/driver`, "run", "--script"]);
  assert.match(path ?? "", /^\/.*\/custom-executor[^/]*\/script[^/]+\/script$/);
  assert.equal(stage, "build_script");
  assert.match(outputOf(result, "build_script"), /^700\n/);
});

Deno.test("a stage that config.toml leaves out is not called", async () => {
  await using bench = await openBench();
  const runner = bench.runner({
    configExec: null,
    prepareExec: null,
    cleanupExec: null,
    buildsDir: `${bench.dir}/builds`,
    cacheDir: `${bench.dir}/cache`,
  });
  const result = await runJob(runner, SMALL_JOB);
  assert.equal(result.verdict, "success");
  assert.equal(stageNames(result)[0], "prepare_script");
  assert.equal(stageNames(result).at(-1), "cleanup_file_variables");
  assert.equal(await exists(result.dirs[0] ?? ""), false);
});

Deno.test("caches, artifacts, further steps and after_script have their stages", async () => {
  const archive = { paths: ["out"], when: "always" } as const;
  const whole = job({
    cache: archive,
    artifacts: archive,
    dependencies: ["build"],
    steps: { release: ["echo released"] },
    afterScript: ["echo status $CI_JOB_STATUS"],
  });
  await using bench = await openBench();
  const good = await runJob(bench.runner(), whole);
  assert.equal(good.verdict, "success");
  assert.deepEqual(stageNames(good).slice(3, -1), [
    "get_sources",
    "restore_cache",
    "download_artifacts",
    "build_script",
    "step_release",
    "after_script",
    "archive_cache",
    "upload_artifacts_on_success",
    "cleanup_file_variables",
  ]);
  assert.match(outputOf(good, "after_script"), /status success\n$/);
  assert.match(outputOf(good, "archive_cache"), /Missing gitlab-runner/);

  const bad = await runJob(bench.runner(), { ...whole, script: ["(exit 42)"] });
  assert.equal(bad.verdict, "script_failure");
  assert.equal(bad.exitCode, 42);
  assert.deepEqual(stageNames(bad).slice(6, -1), [
    "build_script",
    "after_script",
    "archive_cache_on_failure",
    "upload_artifacts_on_failure",
    "cleanup_file_variables",
  ]);
  assert.match(outputOf(bad, "after_script"), /status failed\n$/);
});

Deno.test("scripts stop at the first failure, of a pipe too, and find an empty stdin", async () => {
  await using bench = await openBench();
  const script = ["cat", "echo a\necho b", "false | true", "echo never"];
  const result = await runJob(bench.runner(), job({ script }));
  assert.equal(result.verdict, "script_failure");
  assert.match(result.logText, /\$ echo a # collapsed multi-line command.*\na\nb\n/);
  assert.doesNotMatch(result.logText, /never/);
});

Deno.test("every failed attempt is cleaned up before the next, in a directory of its own", async () => {
  await using bench = await openBench({ prepare: "pwd; exit 2", cleanup: "pwd" });
  const result = await runJob(bench.runner(), SMALL_JOB);
  assert.equal(result.verdict, "runner_system_failure");
  const attempt = ["config", "prepare", "cleanup"];
  assert.deepEqual(stageNames(result), [...attempt, ...attempt, ...attempt]);
  assert.equal(new Set(result.dirs).size, 3);
  for (const number of [1, 2, 3]) {
    assert.equal(outputOf(result, "prepare", number), `${result.dirs[number - 1]}\n`);
    assert.equal(outputOf(result, "cleanup", number), `${result.dirs[number - 1]}\n`);
  }
});

Deno.test("an attempt that succeeds after a failed one goes on with the job", async () => {
  await using bench = await openBench({
    prepare: '[ -e "$dir/once" ] || { touch "$dir/once"; kill -9 $$; }',
  });
  const result = await runJob(bench.runner(), SMALL_JOB);
  assert.equal(result.verdict, "success");
  assert.equal(result.stages[1]?.signal, "SIGKILL");
  assert.deepEqual(stageNames(result).slice(0, 6), [
    "config",
    "prepare",
    "cleanup",
    "config",
    "prepare",
    "prepare_script",
  ]);
});

Deno.test("exit 1 of prepare is the job's fault and is not retried", async () => {
  await using bench = await openBench({ prepare: "echo no such template >&2; exit 1" });
  const result = await runJob(bench.runner(), SMALL_JOB);
  assert.equal(result.verdict, "script_failure");
  assert.deepEqual(stageNames(result), ["config", "prepare", "cleanup"]);
  assert.equal(result.logText, "no such template\n");
});

Deno.test("anything but one JSON object of the right types on config's stdout costs three attempts", async () => {
  for (
    const [stdout, words] of [
      ["Welcome\n{}", /JSON/],
      ["{} {}", /JSON/],
      ["\n", /JSON/],
      ["[]", /object/],
      ['{"builds_dir": 1}', /"builds_dir" is no string/],
      ['{"builds_dir_is_shared": "yes"}', /"builds_dir_is_shared" is no boolean/],
      ['{"job_env": {"A": 1}}', /"A" is no string/],
      ['{"shell": "fish"}', /fish/],
    ] as const
  ) {
    const known = stdout.includes("fish")
      ? `{"builds_dir": "/b", "cache_dir": "/c", "shell": "fish"}`
      : stdout;
    await using bench = await openBench({ config: `printf %s ${quote(known)}` });
    const result = await runJob(bench.runner(), SMALL_JOB);
    assert.equal(result.verdict, "runner_system_failure", stdout);
    assert.match(result.reason, words);
    assert.equal(stageNames(result).join(" "), Array(3).fill("config cleanup").join(" "));
  }
});

Deno.test("config without a builds_dir ends the job at once", async () => {
  await using bench = await openBench({ config: ":" });
  const result = await runJob(bench.runner(), SMALL_JOB);
  assert.equal(result.verdict, "script_failure");
  assert.match(result.reason, /builds_dir/);
  assert.deepEqual(stageNames(result), ["config", "cleanup"]);
});

Deno.test("what config says reaches the stages after it, and unknown keys do no harm", async () => {
  const settings = {
    builds_dir_is_shared: true,
    hostname: "host-1",
    job_env: { VM: "vm-1" },
    driver: { name: "d", version: "1", color: "red" },
    color: null,
  };
  const show = 'echo "<$VM> <$CUSTOM_ENV_CI_PROJECT_DIR>"';
  await using bench = await openBench({
    config: `${show} >&2; print_config ${quote(JSON.stringify(settings).slice(1, -1))}`,
    prepare: show,
    cleanup: show,
  });
  const result = await runJob(bench.runner(), SMALL_JOB);
  const shown = `<vm-1> <${bench.dir}/builds/t3st_rnr/0/project-99>\n`;
  assert.equal(result.verdict, "success");
  assert.ok(result.logText.startsWith(`<> <>\n${shown}`), result.logText);
  assert.match(result.logText, /Running on .* via host-1\.\.\.\n/);
  assert.equal(outputOf(result, "cleanup"), shown);
  assert.deepEqual(result.config.driver, { name: "d", version: "1" });
});

Deno.test("cleanup after a failed config knows no job_env", async () => {
  await using bench = await openBench({
    config: `echo '{"job_env": {"VM": "vm-1"}}'; exit 2`,
    cleanup: 'echo "<$VM>"',
  });
  const result = await runJob(bench.runner(), SMALL_JOB);
  assert.equal(outputOf(result, "cleanup"), "<>\n");
});

Deno.test("the last of several variables with one name wins", async () => {
  const jobEnv = { SYSTEM_FAILURE_EXIT_CODE: "3", OURS: "config", CUSTOM_ENV_DISTRO: "config" };
  await using bench = await openBench({
    config: `print_config ${quote(`"job_env": ${JSON.stringify(jobEnv)}`)}`,
    prepare: "env -0",
  });
  const runner = bench.runner();
  const environment = {
    ...runner.environment,
    TMPDIR: "runner",
    OURS: "runner",
    JOB_RESPONSE_FILE: "runner",
    CUSTOM_ENV_CI_JOB_ID: "runner",
  };
  const result = await runJob(
    { ...runner, environment },
    job({
      image: "debian-12",
      variables: [
        { key: "CI_JOB_ID", value: "1" },
        { key: "CI_JOB_ID", value: "../../evil" },
        { key: "CI_JOB_IMAGE", value: "forged" },
        { key: "CI_JOB_SERVICES", value: "forged" },
        { key: "CI_SHARED_ENVIRONMENT", value: "forged" },
        { key: "OURS", value: "forged" },
        { key: "DISTRO", value: "debian-12" },
      ],
    }),
  );
  const seen = environmentOf(result, "prepare");
  const expected = {
    TMPDIR: result.dirs[0],
    JOB_RESPONSE_FILE: `${result.dirs[0]}/response.json`,
    BUILD_EXIT_CODE_FILE: `${result.dirs[0]}/build_exit_code`,
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
    CUSTOM_ENV_CI_PROJECT_DIR: `${bench.dir}/builds/project-99`,
  };
  const picked = Object.fromEntries(Object.keys(expected).map((key) => [key, seen.get(key)]));
  assert.deepEqual(picked, expected);
});

Deno.test("a job's services are in response.json and, without what they lack, in CI_JOB_SERVICES", async () => {
  await using bench = await openBench({ prepare: 'env -0; cp "$JOB_RESPONSE_FILE" "$dir/seen"' });
  const services = [
    { name: "redis:latest" },
    { name: "postgres:16", alias: "pg", variables: [{ key: "POSTGRES_DB", value: "mydb" }] },
  ];
  const result = await runJob(bench.runner(), job({ services }));
  assert.equal(
    environmentOf(result, "prepare").get("CUSTOM_ENV_CI_JOB_SERVICES"),
    '[{"name":"redis:latest","alias":"","entrypoint":null,"command":null},' +
      '{"name":"postgres:16","alias":"pg","entrypoint":null,"command":null,' +
      '"variables":{"POSTGRES_DB":"mydb"}}]',
  );
  const response = JSON.parse(await Deno.readTextFile(`${bench.dir}/seen`));
  assert.deepEqual(response.services, services);
});

Deno.test("values arrive whole, with newlines, quotes and bytes that are not UTF-8", async () => {
  const values: Readonly<Record<string, Value>> = {
    LINES: "a\n b'\"\\ $HOME `id` \u00e4\t!\n\n",
    BYTES: Uint8Array.from({ length: 255 }, (_, at) => at + 1),
    EMPTY: "",
    LONG: "x".repeat(30_000),
  };
  const variables = Object.entries(values).flatMap(([key, value]) => [
    { key, value },
    { key: `${key}_FILE`, value, file: true },
  ]);
  const keys = Object.keys(values);
  const script = keys.map((key) =>
    `[ "$(printf %s "$${key}" | sha256sum)" = "$(sha256sum <"$${key}_FILE")" ]`
  );
  await using bench = await openBench({ prepare: "env -0" });
  const result = await runJob(bench.runner(), job({ variables, script: [...script, "env -0"] }));
  assert.equal(result.verdict, "success", result.logText);
  for (const key of keys) {
    const value = latin1(values[key] ?? "");
    assert.equal(environmentOf(result, "prepare").get(`CUSTOM_ENV_${key}`), value);
    assert.equal(environmentOf(result, "prepare").get(`CUSTOM_ENV_${key}_FILE`), value);
    assert.equal(environmentOf(result, "build_script").get(key), value);
  }
  assert.equal(
    environmentOf(result, "build_script").get("LINES_FILE"),
    `${bench.dir}/builds/project-99.tmp/LINES_FILE`,
  );
  assert.equal(await exists(`${bench.dir}/builds/project-99.tmp/LINES_FILE`), false);
});

Deno.test("response.json is private and tells what the author cannot forge", async () => {
  await using bench = await openBench({
    prepare: 'stat -c %a . "$JOB_RESPONSE_FILE"; cat "$JOB_RESPONSE_FILE"',
  });
  const variables = [{ key: "CI_JOB_ID", value: "1" }];
  const result = await runJob(bench.runner(), job({ variables, isRefProtected: true }));
  const [dirMode, fileMode, text = ""] = outputOf(result, "prepare").split("\n");
  assert.deepEqual([dirMode, fileMode], ["700", "600"]);
  const response = JSON.parse(text);
  assert.equal(response.id, 4242);
  assert.equal(response.job_info.project_full_path, "grp/proj");
  assert.equal(response.git_info.protected, true);
  assert.equal(response.runner_info.timeout, 3600);
});

Deno.test("a stage starts in the attempt's directory, with an empty stdin, as a group leader", async () => {
  await using bench = await openBench({
    prepare: 'pwd; wc -c; read -r pid _ _ _ group _ </proc/$$/stat; echo "$((pid - group))"',
  });
  const result = await runJob(bench.runner(), SMALL_JOB);
  assert.equal(outputOf(result, "prepare"), `${result.dirs[0]}\n0\n0\n`);
});

Deno.test("BUILD_EXIT_CODE_FILE holds a decimal integer, or the host is to blame", async () => {
  for (
    const [write, verdict, exitCode] of [
      [":", "script_failure", 1],
      ["echo 42", "script_failure", 42],
      ["printf 255", "script_failure", 255],
      ["printf '7\\r\\nmore'", "script_failure", 7],
      ["echo ' 42'", "runner_system_failure", null],
      ["echo exit 42", "runner_system_failure", null],
      ["echo 0x2a", "runner_system_failure", null],
      ["printf ''", "runner_system_failure", null],
    ] as const
  ) {
    const file = write === ":" ? "/dev/null" : "$BUILD_EXIT_CODE_FILE";
    await using bench = await openBench({ run: `${write} >"${file}"; exit 1` });
    const result = await runJob(bench.runner(), SMALL_JOB);
    assert.equal(result.verdict, verdict, write);
    assert.equal(result.exitCode, exitCode, write);
  }
});

Deno.test("a BUILD_EXIT_CODE_FILE that an earlier script left is believed", async () => {
  await using bench = await openBench({
    run: 'if [ "$stage" = build_script ]; then exit 1; fi; echo 9 >"$BUILD_EXIT_CODE_FILE"',
  });
  const result = await runJob(bench.runner(), SMALL_JOB);
  assert.equal(result.exitCode, 9);
});

Deno.test("a status that run should not end with is the host's fault", async () => {
  for (const end of ["exit 2", "exit 3", "exit 255", "kill -9 $$"]) {
    const run = `if [ "$stage" = build_script ]; then ${end}; fi; run_script`;
    await using bench = await openBench({ run });
    const result = await runJob(bench.runner(), job({ afterScript: ["true"] }));
    assert.equal(result.verdict, "runner_system_failure", end);
    assert.deepEqual(stageNames(result).slice(4), [
      "build_script",
      "after_script",
      "cleanup_file_variables",
      "cleanup",
    ]);
  }
});

Deno.test("neither after_script nor cleanup changes the verdict", async () => {
  await using bench = await openBench({ cleanup: "echo freed; echo odd >&2; exit 3" });
  const result = await runJob(bench.runner(), job({ afterScript: ["false"] }));
  assert.equal(result.verdict, "success");
  assert.deepEqual(result.runnerLog, [
    { level: "debug", text: "freed" },
    { level: "warning", text: "odd" },
    { level: "warning", text: "Cleanup script failed: cleanup: exit status 3" },
  ]);
  assert.doesNotMatch(result.logText, /freed|odd/);
});

Deno.test("a failing prepare_script ends the job before any other script", async () => {
  await using bench = await openBench({ run: "exit 1" });
  const result = await runJob(bench.runner(), job({ afterScript: ["true"] }));
  assert.equal(result.verdict, "script_failure");
  assert.deepEqual(stageNames(result), ["config", "prepare", "prepare_script", "cleanup"]);
});

Deno.test("get_sources is tried as often as GET_SOURCES_ATTEMPTS says, cleared in between", async () => {
  const run = 'if [ "$stage" = get_sources ]; then exit 1; fi; true';
  await using bench = await openBench({ run });
  const once = await runJob(bench.runner(), SMALL_JOB);
  assert.equal(once.verdict, "script_failure");
  assert.deepEqual(stageNames(once).slice(2, -1), [
    "prepare_script",
    "get_sources",
    "cleanup_file_variables",
  ]);

  const variables = [{ key: "GET_SOURCES_ATTEMPTS", value: "3" }];
  const thrice = await runJob(bench.runner(), job({ variables }));
  assert.deepEqual(stageNames(thrice).slice(3, -2), [
    "get_sources",
    "clear_worktree",
    "get_sources",
    "get_sources",
  ]);
});

Deno.test("a stage lasts until nobody holds its outputs any longer", async () => {
  await using bench = await openBench({
    prepare: "(sleep 0.3; echo late) & exit 0",
    cleanup: "sleep 30 >/dev/null 2>&1 & echo $!",
  });
  const result = await runJob(bench.runner(), SMALL_JOB);
  const [, prepare] = result.stages;
  assert.ok((prepare?.seconds ?? 0) >= 0.3);
  assert.equal(outputOf(result, "prepare"), "late\n");
  assert.ok((result.stages.at(-1)?.seconds ?? 30) < 30);
  Deno.kill(Number(outputOf(result, "cleanup")), "SIGKILL");
});

Deno.test("outputs arrive byte for byte", async () => {
  await using bench = await openBench();
  const noise = Uint8Array.from({ length: 300_001 }, (_, at) => (at * 7919) >> 3);
  await Deno.writeFile(`${bench.dir}/noise`, noise);
  const chunks: Uint8Array[] = [];
  const runner = bench.runner({
    onOutput: (stage, stream, chunk) => {
      if (stage === "build_script" && stream === "stderr") chunks.push(chunk);
    },
  });
  const result = await runJob(runner, job({ script: [`cat ${bench.dir}/noise >&2`] }));
  const record = result.stages.find(({ name }) => name === "build_script");
  assert.deepEqual(record?.stderr, noise);
  assert.deepEqual(concat(chunks), noise);
  const lengths = result.stages.filter(({ name }) => !/^(config|cleanup)$/.test(name))
    .map(({ stdout, stderr }) => stdout.length + stderr.length);
  assert.equal(result.log.length, lengths.reduce((sum, length) => sum + length, 0));
});

Deno.test("a hard cancel sends SIGTERM to the whole group and SIGKILL after the grace time", async () => {
  await using bench = await openBench({
    prepare: `
      trap 'echo parent got it' TERM
      (trap 'echo child got it' TERM; echo up; ${FOREVER}) &
      ${FOREVER}`,
  });
  const result = await runJob(bench.runner({ gracefulKillSeconds: 0.5 }), SMALL_JOB, {
    events: [{ stage: "prepare", whenOutput: "up", action: "hard_cancel" }],
  });
  assert.equal(result.verdict, "canceled");
  assert.deepEqual(stageNames(result), ["config", "prepare", "cleanup"]);
  assert.deepEqual(result.stages[1]?.sent, ["SIGTERM", "SIGKILL"]);
  assert.equal(result.stages[1]?.signal, "SIGKILL");
  assert.match(outputOf(result, "prepare"), /parent got it/);
  assert.match(outputOf(result, "prepare"), /child got it/);
});

Deno.test("a soft cancel ends the script, and after_script follows in the same machine", async () => {
  await using bench = await openBench();
  const result = await runJob(
    bench.runner(),
    job({
      script: ["touch here", "echo up", FOREVER, "echo never"],
      afterScript: ["ls", 'echo "status $CI_JOB_STATUS"'],
      artifacts: { paths: ["out"], when: "on_failure" },
    }),
    { events: [{ stage: "build_script", whenOutput: "\nup", action: "soft_cancel" }] },
  );
  assert.equal(result.verdict, "canceled");
  assert.deepEqual(stageNames(result).slice(4), [
    "build_script",
    "after_script",
    "upload_artifacts_on_failure",
    "cleanup_file_variables",
    "cleanup",
  ]);
  assert.deepEqual(result.stages[4]?.sent, ["SIGTERM"]);
  assert.match(outputOf(result, "after_script"), /\nhere\n.*\n?status canceled\n$/s);
  assert.doesNotMatch(result.logText, /never\n/);
});

Deno.test("a soft cancel before the script ends the job, and one after it does nothing", async () => {
  const run = 'echo "at $stage"; run_script';
  await using bench = await openBench({ run });
  const whole = job({ afterScript: ["true"] });
  const early = await runJob(bench.runner(), whole, {
    events: [{ stage: "get_sources", whenOutput: "at", action: "soft_cancel" }],
  });
  assert.equal(early.verdict, "canceled");
  assert.deepEqual(stageNames(early).slice(3), ["get_sources", "cleanup"]);

  const late = await runJob(bench.runner(), whole, {
    events: [{ stage: "after_script", whenOutput: "at", action: "soft_cancel" }],
  });
  assert.equal(late.verdict, "success");
});

Deno.test("a job that takes too long gets no after_script, only cleanup", async () => {
  await using bench = await openBench();
  const slow = job({ script: [FOREVER], afterScript: ["true"], timeoutSeconds: 3 });
  const result = await runJob(bench.runner(), slow);
  assert.equal(result.verdict, "job_execution_timeout");
  assert.deepEqual(stageNames(result).slice(4), ["build_script", "cleanup"]);
});

Deno.test("cleanup does not wait for ever for a run that ignores SIGTERM", async () => {
  await using bench = await openBench({
    run: `[ "$stage" = build_script ] || run_script; trap '' TERM; echo up; sleep 30`,
  });
  const result = await runJob(
    bench.runner({ gracefulKillSeconds: 0.5, stuckBuildSeconds: 0.1 }),
    SMALL_JOB,
    { events: [{ stage: "build_script", whenOutput: "up", action: "job_timeout" }] },
  );
  assert.equal(result.verdict, "job_execution_timeout");
  assert.deepEqual(stageNames(result).slice(4), ["cleanup", "build_script"]);
  assert.deepEqual(result.stages.at(-1)?.sent, ["SIGTERM", "SIGKILL"]);
});

Deno.test("a runner gives up on outputs that SIGKILL does not close", async () => {
  await using bench = await openBench({
    prepare: 'set -m; sleep 30 & echo $! >"$dir/pid"; echo up; wait',
  });
  const result = await runJob(
    bench.runner({ forceKillSeconds: 0.1, gracefulKillSeconds: 0.1 }),
    SMALL_JOB,
    { events: [{ stage: "prepare", whenOutput: "up", action: "hard_cancel" }] },
  );
  killGroup(Number(await Deno.readTextFile(`${bench.dir}/pid`)), "SIGKILL");
  const [, prepare] = result.stages;
  assert.deepEqual([prepare?.exitStatus, prepare?.signal], [null, null]);
  assert.equal(result.verdict, "canceled");
});

Deno.test("a runner that is stopped leaves in the middle of a long cleanup", async () => {
  await using bench = await openBench({
    cleanup: 'until [ -e "$dir/go" ]; do sleep 0.01; done; touch "$dir/clean"',
  });
  const result = await runJob(
    bench.runner({ shutdownSeconds: 0.5 }),
    job({ script: ["echo up", FOREVER], afterScript: ["true"] }),
    { events: [{ stage: "build_script", whenOutput: "\nup", action: "runner_stop" }] },
  );
  assert.equal(result.verdict, null);
  assert.deepEqual(stageNames(result).slice(4), ["build_script", "cleanup"]);
  assert.equal(await exists(`${bench.dir}/clean`), false);
  assert.equal(await exists(result.dirs[0] ?? ""), true);
  await Deno.writeTextFile(`${bench.dir}/go`, "");
  await Promise.all(result.orphans.map(({ ended }) => ended));
  assert.equal(await exists(`${bench.dir}/clean`), true);
});

Deno.test("a runner that is stopped in time reports a system failure", async () => {
  await using bench = await openBench({ prepare: "echo up" });
  const result = await runJob(bench.runner(), SMALL_JOB, {
    events: [{ stage: "prepare", whenOutput: "up", action: "runner_stop" }],
  });
  assert.equal(result.verdict, "runner_system_failure");
  assert.deepEqual(stageNames(result), ["config", "prepare", "cleanup"]);
  assert.deepEqual(result.stages[1]?.sent, []);
});

for (const signal of ["SIGTERM", "SIGKILL"] as const) {
  Deno.test(`a runner whose process ends by ${signal} leaves prepare and its directory`, async () => {
    await using bench = await openBench({
      prepare: `trap 'touch "$dir/term"' TERM; echo "$PPID $$ $TMPDIR"
        while [ ! -e "$dir/go" ]; do sleep 0.01; done; ps -o ppid= $$ > "$dir/parent"`,
    });
    await using runner = startRunnerProcess(bench.runner({ shutdownSeconds: 0.2 }), SMALL_JOB);
    const printed = await runner.printed(/^\d+ .*\n/m);
    const [, parent, pid, attempt] = /^(\d+) (\d+) (.*)\n/m.exec(printed) ?? [];
    await runner.end(signal);
    assert.equal(await exists(`/proc/${parent}`), false);
    assert.equal(await exists(`/proc/${pid}`), true);
    await Deno.writeTextFile(`${bench.dir}/go`, "");
    while (await exists(`/proc/${pid}`)) await new Promise((done) => setTimeout(done, 10));
    assert.notEqual((await Deno.readTextFile(`${bench.dir}/parent`)).trim(), parent);
    assert.equal(await exists(`${bench.dir}/term`), false);
    assert.equal(await exists(`${attempt}/response.json`), true);
  });
}

Deno.test("a runner hears of a cancel when it asks GitLab the next time", async () => {
  await using bench = await openBench();
  const result = await runJob(
    bench.runner({ pollSeconds: 0.5 }),
    job({ script: ["echo up", "sleep 0.3; echo goes on", FOREVER] }),
    { events: [{ stage: "build_script", whenOutput: "\nup", action: "soft_cancel" }] },
  );
  assert.equal(result.verdict, "canceled");
  assert.match(outputOf(result, "build_script"), /\ngoes on\n/);
});

Deno.test("a runner that is killed calls nothing more and signals nobody", async () => {
  await using bench = await openBench({
    prepare:
      `trap 'echo got it >"$dir/term"' TERM; echo up; sleep 0.2; touch "$dir/alive"; sleep 30`,
  });
  const result = await runJob(bench.runner(), SMALL_JOB, {
    events: [{ stage: "prepare", whenOutput: "up", action: "runner_kill" }],
  });
  assert.equal(result.verdict, null);
  assert.deepEqual(stageNames(result), ["config", "prepare"]);
  assert.equal(await exists(`${result.dirs[0]}/response.json`), true);
  const [orphan] = result.orphans;
  assert.ok(orphan);
  while (!await exists(`${bench.dir}/alive`)) await new Promise((done) => setTimeout(done, 10));
  killGroup(orphan.pid, "SIGKILL");
  await orphan.ended;
  assert.equal(await exists(`${bench.dir}/term`), false);
});

Deno.test("an event's function runs once at its point and knows the stage", async () => {
  await using bench = await openBench();
  const pids: number[] = [];
  const result = await runJob(
    bench.runner(),
    job({ script: ["echo up", "until [ -e go ]; do sleep 0.01; done", "echo up"] }),
    {
      events: [{
        stage: "build_script",
        whenOutput: "\nup",
        afterMs: 20,
        action: async ({ pid, attempt }) => {
          pids.push(pid);
          assert.equal(attempt, 1);
          await Deno.writeTextFile(`${bench.dir}/builds/project-99/go`, "");
        },
      }],
    },
  );
  assert.equal(result.verdict, "success");
  assert.equal(pids.length, 1);
});

Deno.test("runJob() throws what an event's function throws, after cleanup", async () => {
  await using bench = await openBench({ cleanup: 'touch "$dir/clean"' });
  const action = (): never => {
    throw new Error("no such guest");
  };
  const events = [{ stage: "build_script", action }];
  await assert.rejects(
    runJob(bench.runner(), job({ script: [FOREVER] }), { events }),
    /no such guest/,
  );
  assert.equal(await exists(`${bench.dir}/clean`), true);
});

Deno.test("runJob() throws if an event's time never came", async () => {
  await using bench = await openBench();
  const events = [{
    stage: "build_script",
    whenOutput: "no such text",
    action: "soft_cancel",
  }] as const;
  await assert.rejects(runJob(bench.runner(), SMALL_JOB, { events }), /no such text.*success/s);
});

Deno.test({
  name: "get_sources fetches a commit when the job has a repository",
  ignore: !new Deno.Command("bash", { args: ["-c", "command -v git"] }).outputSync().success,
  fn: async () => {
    await using bench = await openBench();
    const repo = `${bench.dir}/repo`;
    const git = async (...args: readonly string[]): Promise<string> => {
      const env = { GIT_CONFIG_GLOBAL: "/dev/null", GIT_CONFIG_SYSTEM: "/dev/null" };
      const identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"];
      const { stdout, success } = await new Deno.Command("git", {
        args: ["-C", bench.dir, ...identity, ...args],
        env,
      }).output();
      assert.ok(success);
      return toText(stdout).trim();
    };
    await git("init", "-q", "-b", "main", repo);
    await Deno.writeTextFile(`${repo}/file`, "content\n");
    await git("-C", repo, "add", "file");
    await git("-C", repo, "commit", "-q", "-m", "first");
    const sha = await git("-C", repo, "rev-parse", "HEAD");
    const repository = { url: `file://localhost${repo}.git`, sha };
    await Deno.rename(repo, `${repo}.git`);
    const result = await runJob(bench.runner(), job({ repository, script: ["cat file"] }));
    assert.equal(result.verdict, "success", result.logText);
    assert.match(outputOf(result, "build_script"), /\ncontent\n$/);
    const wrong = { ...repository, sha: "0".repeat(40) };
    const failed = await runJob(bench.runner(), job({ repository: wrong }));
    assert.equal(failed.verdict, "script_failure");
    assert.equal(stageNames(failed).includes("build_script"), false);
  },
});
