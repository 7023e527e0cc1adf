// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { loadProc } from "../ffi/proc.ts";
import { processMark } from "../src/machine/process.ts";
import { readOpenMetrics } from "./fakes/open_metrics.ts";
import { TestLibvirtd } from "./fakes/test_libvirtd.ts";
import { JOB } from "./fakes/test_stage.ts";
import { denoVariables } from "./harness/runner.ts";

loadProc(); // what is loaded in a test is taken for a leak of it

const ROOT = new URL("..", import.meta.url);

interface Ended {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs main.ts with only these variables and those that Deno needs, and without settings. */
async function program(args: string[], env: Record<string, string> = {}): Promise<Ended> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-all", "main.ts", ...args],
    cwd: ROOT,
    clearEnv: true,
    env: {
      ...denoVariables(),
      HOME: Deno.env.get("HOME") ?? "/",
      XDG_CONFIG_HOME: "/nonexistent",
      ...env,
    },
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return { status: code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}

/** The environment and the file by which GitLab Runner tells of a job. */
async function withRunner(test: (env: Record<string, string>) => Promise<void>): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const file = `${directory}/response.json`;
  await Deno.writeTextFile(
    file,
    JSON.stringify({ id: 4242, token: "secret-token", job_info: { project_name: "proj" } }),
  );
  try {
    await test({
      JOB_RESPONSE_FILE: file,
      BUILD_EXIT_CODE_FILE: `${directory}/build_exit_code`,
      BUILD_FAILURE_EXIT_CODE: "11",
      SYSTEM_FAILURE_EXIT_CODE: "22",
      CUSTOM_ENV_DISTRO: "debian-12",
    });
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("config prints one JSON object, with the machine and its caller for the later stages", () =>
  withRunner(async (env) => {
    const { status, stdout, stderr } = await program(["config"], env);
    assert.deepEqual([status, stderr], [0, ""]);
    const { driver, builds_dir, cache_dir, shell, job_env } = JSON.parse(stdout);
    assert.equal(driver.name, "libvirt-gci");
    assert.match(driver.version, /^v\d+\.\d+\.\d+$/);
    assert.deepEqual(
      [builds_dir, cache_dir, shell],
      ["/home/gitlab-runner/builds", "/home/gitlab-runner/cache", "bash"],
    );
    assert.match(job_env.LIBVIRT_GCI_MACHINE, /^gitlab-proj-4242-[0-9a-f]{10}$/);
    assert.equal(job_env.LIBVIRT_GCI_CALLER, processMark(Deno.pid));
  }));

Deno.test("config leaves a template that is none for prepare to refuse", () =>
  withRunner(async (env) => {
    const { status, stdout } = await program(["config"], { ...env, CUSTOM_ENV_DISTRO: "../x" });
    assert.equal(status, 0);
    assert.match(JSON.parse(stdout).job_env.LIBVIRT_GCI_MACHINE, /^gitlab-proj-4242-/);
  }));

Deno.test("a template's name that is none is the job's fault, with the runner's status", () =>
  withRunner(async (env) => {
    const uri = `test://${new URL("data/host.xml", import.meta.url).pathname}`;
    const settings = await Deno.makeTempFile({ prefix: "libvirt-gci-test-" });
    await Deno.writeTextFile(settings, `libvirt: {uri: ${uri}}\n`);
    const args = ["--config", settings, "prepare"];
    const { status, stderr } = await program(args, { ...env, CUSTOM_ENV_DISTRO: "../x" });
    await Deno.remove(settings);
    assert.equal(status, 11, stderr);
    assert.match(stderr, /asks for the template "\.\.\/x"/);
  }));

Deno.test("a fault of the host has the runner's status, and removes an earlier script's", () =>
  withRunner(async (env) => {
    const statusFile = env["BUILD_EXIT_CODE_FILE"] ?? "";
    await Deno.writeTextFile(statusFile, "7\n");
    const { status, stderr } = await program(["run", "/nonexistent/script", "build_script"], env);
    assert.equal(status, 22, stderr);
    assert.match(stderr, /Cannot read the script "\/nonexistent\/script"/);
    await assert.rejects(Deno.stat(statusFile), Deno.errors.NotFound);
    assert.doesNotMatch(stderr, /secret-token/);
  }));

Deno.test("config tells GitLab Runner of the template of --distro", () =>
  withRunner(async (env) => {
    const settings = await Deno.makeTempFile({ prefix: "libvirt-gci-test-" });
    await Deno.writeTextFile(
      settings,
      "allowed_templates: []\ntemplates: {a: {ssh: {user: root}}}\n",
    );
    const { stdout } = await program(["--config", settings, "config", "--distro", "a"], env);
    await Deno.remove(settings);
    assert.equal(JSON.parse(stdout).builds_dir, "/root/builds");
  }));

Deno.test("a runner that does not say which job it is gets no machine's name", async () => {
  const env = {
    SYSTEM_FAILURE_EXIT_CODE: "22",
    CUSTOM_ENV_CI_JOB_ID: "1",
    CUSTOM_ENV_CI_PROJECT_NAME: "other",
    LIBVIRT_GCI_MACHINE: "from-nowhere",
  };
  const { status, stdout, stderr } = await program(["config"], env);
  assert.deepEqual([status, stdout], [22, ""]);
  assert.match(stderr, /GitLab Runner 14\.1 or newer/);
});

Deno.test("words that are not ours look like no line of ours, with --debug neither", async () => {
  const list = (): never => {
    throw new Error("no\nlibvirt-gci: all is well\r\ndebug: virDomainDestroy 1 ms\x1b[8m");
  };
  await using libvirtd = new TestLibvirtd({ CONNECT_LIST_ALL_DOMAINS: list });
  const settings = await Deno.makeTempFile({ prefix: "libvirt-gci-test-" });
  await Deno.writeTextFile(settings, `libvirt: {uri: ${libvirtd.uri}}\n`);
  const { status, stderr } = await program(["--debug", "--config", settings, "list"]);
  await Deno.remove(settings);
  assert.equal(status, 2);
  assert.match(stderr, /^debug: LibvirtError: libvirt: no$/m); // with where it comes from
  assert.match(stderr, /^libvirt-gci: libvirt: no$/m);
  assert.doesNotMatch(stderr, /^(libvirt-gci: all|debug: virDomainDestroy)/m);
  assert(!stderr.includes("\x1b"));
});

Deno.test("explain says what a job would get, and does not connect to libvirt", async () => {
  const settings = await Deno.makeTempFile({ prefix: "libvirt-gci-test-" });
  await Deno.writeTextFile(settings, "libvirt: {uri: nonsense:///}\nlimits: {vcpus: 8}\n");
  const { status, stdout, stderr } = await program(
    ["--debug", "--config", settings, "explain", "--project", "grp/proj", "--distro", "fedora-40"],
    { CUSTOM_ENV_LIBVIRT_GCI_VCPUS: "4" },
  );
  await Deno.remove(settings);
  assert.deepEqual([status, stderr], [0, ""]);
  assert.match(stdout, /^vcpus +4, from LIBVIRT_GCI_VCPUS; at most 8/m);
});

Deno.test("explain ends as prepare would, with its words, when the job is refused", () =>
  withRunner(async (env) => {
    const { status, stdout, stderr } = await program(["explain", "--json"], {
      ...env,
      CUSTOM_ENV_LIBVIRT_GCI_VCPUS: "3",
    });
    assert.equal(status, 11);
    assert.match(
      stderr,
      /^libvirt-gci: The job asks for LIBVIRT_GCI_VCPUS=3, but at most 2 is allowed by/,
    );
    assert.equal(`libvirt-gci: ${JSON.parse(stdout).refusal}\n`, stderr);
  }));

/** Makes a host of libvirt's test driver where this volume is left over, and gives its settings. */
async function withHost<T>(volume: string, body: (settings: string) => Promise<T>): Promise<T> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const host = await Deno.readTextFile(new URL("tests/data/host.xml", ROOT));
  await Deno.writeTextFile(`${directory}/host.xml`, host.replaceAll("somebody.qcow2", volume));
  await Deno.writeTextFile(
    `${directory}/config.yaml`,
    `libvirt: {uri: test://${directory}/host.xml}\n`,
  );
  try {
    return await body(`${directory}/config.yaml`);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** Runs main.ts by hand on such a host. */
function onHostWith(volume: string, args: string[]): Promise<Ended> {
  return withHost(volume, (settings) => program(["--config", settings, ...args]));
}

Deno.test("gc says what it removed, and nothing where there is nothing", async () => {
  const left = await onHostWith("gone.overlay.libvirt-gci", ["gc"]);
  assert.deepEqual([left.status, left.stderr], [0, ""]);
  assert.equal(left.stdout, 'Removed "gone" (1 volume): it has no owner\n');
  const dry = await onHostWith("gone.overlay.libvirt-gci", [
    "gc",
    "--dry-run",
    "--older-than",
    "2h",
  ]);
  assert.equal(dry.stdout, 'Would remove "gone" (1 volume): it has no owner\n');
  const nothing = await onHostWith("somebody.qcow2", ["gc"]);
  assert.deepEqual(nothing, { status: 0, stdout: "", stderr: "" });
});

Deno.test("gc that cannot remove something ends with 2, and says what and why", async () => {
  const { status, stderr } = await onHostWith("somebody.overlay.libvirt-gci", ["gc"]);
  assert.equal(status, 2);
  assert.match(stderr, /^libvirt-gci: Cannot remove a machine no longer needed\n/);
  assert.match(stderr, /- The domain "somebody" was not created by libvirt-gci/);
});

Deno.test("stages are counted in metrics_file, whatever their end; other commands are not", () =>
  withHost("gone.overlay.libvirt-gci", async (settings) => {
    const file = settings.replace("config.yaml", "gci.prom");
    await Deno.writeTextFile(settings, `metrics_file: ${file}\n`, { append: true });
    const counted = ["--config", settings];
    for (
      const args of [["gc", "--dry-run"], ["list"], ["cleanup", "--all", "--yes"], ["explain"]]
    ) {
      await program([...counted, ...args]);
      await assert.rejects(Deno.stat(file), Deno.errors.NotFound, args.join(" "));
    }
    for (
      const [args, status] of [
        [["gc"], 0],
        [["cleanup", "--machine", "nothing"], 0],
        [["run", "--machine", "nothing", "--", "true"], 255],
        [["prepare", "--distro", "nothing"], 1],
        [["prepare"], 1],
        [["cleanup"], 2], // of which machine?
      ] as const
    ) {
      const ended = await program([...counted, ...args]);
      assert.equal(ended.status, status, ended.stderr);
      assert.doesNotMatch(ended.stderr, /metrics/);
    }
    const samples = readOpenMetrics(await Deno.readTextFile(file));
    const counts = [...samples].filter(([name, value]) => /_total/.test(name) && value > 0);
    assert.deepEqual(counts, [
      ['libvirt_gci_stages_total{stage="prepare",result="job"}', 2],
      ['libvirt_gci_stages_total{stage="run",result="host"}', 1],
      ['libvirt_gci_stages_total{stage="cleanup",result="success"}', 1],
      ['libvirt_gci_stages_total{stage="gc",result="success"}', 1],
      ['libvirt_gci_failures_total{cause="template"}', 2],
      ['libvirt_gci_failures_total{cause="guest_ended"}', 1],
    ]);
  }));

Deno.test("ssh without a terminal says what needs none", async () => {
  const { status, stderr } = await onHostWith("somebody.qcow2", ["ssh", "mine"]);
  assert.equal(status, 2);
  assert.match(
    stderr,
    /The command ssh needs a terminal\nWhat to do: Run .*: libvirt-gci run --machine mine/,
  );
});

Deno.test("logs says that a machine has no console", async () => {
  const { status, stderr } = await onHostWith("somebody.qcow2", ["logs", "mine"]);
  assert.equal(status, 2);
  assert.match(stderr, /The machine "mine" has no serial console/);
});

Deno.test("doctor finds mistakes in the settings, and goes on without them", async () => {
  const settings = await Deno.makeTempFile({ prefix: "libvirt-gci-test-", suffix: ".yaml" });
  await Deno.writeTextFile(settings, "nonsense: 1\n");
  const { status, stdout, stderr } = await program(["--config", settings, "doctor", "--json"]);
  await Deno.remove(settings);
  assert.equal(status, 2);
  const findings: { level: string; meaning: string }[] = JSON.parse(stdout).findings;
  assert(
    findings.some(({ level, meaning }) => level === "problem" && /nonsense/.test(meaning)),
    stdout,
  );
  assert.match(stderr, /The host is not ready: /);
});

/** The home in /etc/passwd, which need not be that of the tests. */
async function homeOfUser(): Promise<string> {
  const args = ["passwd", String(Deno.uid())];
  const { stdout } = await new Deno.Command("getent", { args }).output();
  return new TextDecoder().decode(stdout).split(":")[5] ?? "";
}

Deno.test("without HOME, as systemd's services are, ~ is the home that the system knows of", () =>
  withHost("somebody.qcow2", async (settings) => {
    await Deno.writeTextFile(settings, "ssh: {login: template, key: ~/.ssh/no-such-key}\n", {
      append: true,
    });
    const { stdout } = await program(["--config", settings, "doctor"], { HOME: "" });
    assert(stdout.includes(`${await homeOfUser()}/.ssh/no-such-key`), stdout);
  }));

Deno.test("list prints a table, or JSON", async () => {
  const table = await onHostWith("gone.overlay.libvirt-gci", ["list"]);
  assert.match(table.stdout, /^MACHINE .* DISK\ngone .* leftover .*\n$/);
  const json = await onHostWith("gone.overlay.libvirt-gci", ["list", "--json"]);
  assert.equal(JSON.parse(json.stdout)[0].machine, "gone");
  assert.equal((await onHostWith("somebody.qcow2", ["list", "--json"])).stdout, "[]\n");
});

Deno.test("cleanup --all without a terminal needs --yes", async () => {
  const refused = await onHostWith("gone.overlay.libvirt-gci", ["cleanup", "--all"]);
  assert.equal(refused.status, 2);
  assert.match(refused.stderr, /Remove 1 machine\? There is no terminal to ask on/);
  const { status, stdout } = await onHostWith("gone.overlay.libvirt-gci", [
    "cleanup",
    "--all",
    "--yes",
  ]);
  assert.deepEqual([status, stdout], [0, 'Removed the machine "gone"\n']);
});

/** Runs main.ts at a terminal, where this is typed. */
async function atTerminal(
  args: readonly string[],
  { input = "", env = {} }: {
    readonly input?: string;
    readonly env?: Record<string, string>;
  } = {},
): Promise<Omit<Ended, "stderr">> {
  const main = new URL("main.ts", ROOT).pathname;
  const line = `'${Deno.execPath()}' run --quiet -A ${main} ${args.join(" ")}`;
  const terminal = new Deno.Command("script", {
    args: ["-qec", line, "/dev/null"],
    env: { TERM: "xterm", NO_COLOR: "", ...env },
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const writer = terminal.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input));
  const { stdout, code } = await terminal.output();
  await writer.close().catch(() => {});
  return { status: code, stdout: new TextDecoder().decode(stdout) };
}

Deno.test("errors and states have colours at a terminal, but not with NO_COLOR, and JSON never", () =>
  withHost("gone.overlay.libvirt-gci", async (settings) => {
    const failed = await atTerminal(["cleanup"]);
    assert(
      failed.stdout.startsWith("\x1b[31mlibvirt-gci:\x1b[0m No machine is named"),
      failed.stdout,
    );
    const list = ["--config", settings, "list"];
    assert((await atTerminal(list)).stdout.includes("  \x1b[31mleftover\x1b[0m  "));
    for (const [args, env] of [[[...list, "--json"], {}], [list, { NO_COLOR: "1" }]] as const) {
      const { stdout } = await atTerminal(args, { env });
      assert.match(stdout, /leftover/);
      assert(!stdout.includes("\x1b"), stdout);
    }
  }));

for (
  const [answer, words] of [["y", /Removed the machine/], ["", /Nothing was removed/]] as const
) {
  const title = `cleanup --all asks at a terminal, where the answer is ${JSON.stringify(answer)}`;
  Deno.test(title, () =>
    withHost("gone.overlay.libvirt-gci", async (settings) => {
      const { stdout, status } = await atTerminal(["--config", settings, "cleanup", "--all"], {
        input: `${answer}\n`,
      });
      assert.equal(status, 0);
      assert.match(stdout, /Remove 1 machine\? \[y\/N\] /);
      assert.match(stdout, words);
    }));
}

Deno.test("a settings file that others may write is refused, and says how to mend it", async () => {
  const settings = await Deno.makeTempFile({ prefix: "libvirt-gci-test-" });
  await Deno.chmod(settings, 0o666);
  const { status, stderr } = await program(["--config", settings, "explain"]);
  await Deno.remove(settings);
  assert.equal(status, 2);
  assert.match(stderr, /Other users can write the settings: .*\nWhat to do: chmod go-w "/);
});

for (
  const [args, message] of [
    [[], /Usage: libvirt-gci/],
    [["frob"], /frob/],
    [["prepare", "--frob"], /--frob/],
    [["prepare", "--distro"], /--distro/],
    [["run"], /needs a script, or a command after --/],
    [["run", "script", "--", "true"], /not both/],
    [["cleanup", "--", "true"], /takes no arguments after --/],
    [["explain", "--", "true"], /takes no arguments after --/],
    [["explain", "--variables", "/nonexistent"], /Cannot read the variables/],
    [["cleanup"], /No machine is named/],
    [["cleanup", "--all", "--machine", "m"], /--machine or --all, not both/],
    [["warm", "--remove"], /needs the name of at least one template/],
    [["gc", "--older-than", "2 weeks"], /Write a number and s, m, h or d/],
    [["gc", "--", "true"], /takes no arguments after --/],
    [["run", "-m", "a/b", "--", "true"], /"a\/b" is not a valid machine name/],
    [["cleanup", "--machine", ""], /"" is not a valid machine name/],
  ] as const
) {
  Deno.test(`the arguments ${JSON.stringify(args)} are a mistake that is named, with status 2`, async () => {
    const { status, stderr } = await program([...args]);
    assert.equal(status, 2, stderr);
    assert.match(stderr, message);
  });
}

Deno.test("each file of src/commands is a command of its name, with help", async () => {
  const files = [...Deno.readDirSync(new URL("src/commands", ROOT))];
  const commands = files.map(({ name }) => name.replace(/\.ts$/, ""));
  const { stdout } = await program(["--debug", "--config", "prepare", "--help"]); // a file's name
  const listed = [...stdout.matchAll(/^ {2}([a-z]+) +[A-Z]/gm)].map(([, name = ""]) => name);
  assert.deepEqual(listed.toSorted(), [...commands, "completions", "help"].toSorted());
  for (const command of commands) {
    const { status, stdout } = await program([command, "--help"]);
    assert.equal(status, 0, command);
    assert.match(stdout, new RegExp(`^Usage: libvirt-gci ${command} .*\n\n[A-Z].*\\.\n`));
  }
});

Deno.test("an error that nothing catches is told, and is the host's fault", async () => {
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", "--quiet", LOST, "logs", "mine"],
    cwd: ROOT,
    env: { BUILD_FAILURE_EXIT_CODE: "11", SYSTEM_FAILURE_EXIT_CODE: "22" },
  }).output();
  assert.equal(code, 22);
  assert.equal(new TextDecoder().decode(stderr), "libvirt-gci: nobody waits for this\n");
});

/** The program, where a call of libvirt fails beside what waits for it. */
const LOST = `
  import { Connection } from "./src/libvirt/connection.ts";
  Connection.open = () => {
    Promise.reject(new Error("nobody waits for this"));
    return new Promise(() => setTimeout(() => {}, 60_000));
  };
  await import("./main.ts");
`;

/** Calls `run` on a machine that is ready, with this command or for a script of this name. */
async function runOnGuest(args: readonly string[], env: Record<string, string>): Promise<Ended> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  await Deno.writeTextFile(`${directory}/script`, "echo ran; exit 7\n");
  const path = new URL("tests/fakes/program_by_hand.ts", ROOT).pathname;
  try {
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "--allow-all", path, ...args],
      cwd: directory,
      env: { XDG_CONFIG_HOME: "/nonexistent", TMPDIR: directory, ...env },
      stdin: "null",
    }).output();
    const decoder = new TextDecoder();
    return { status: code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

for (
  const [script, status] of [
    ["echo ran", 0],
    ["echo ran; exit 7", 7],
    ["echo ran; exit 2", 2],
    ["echo ran; kill -TERM $$", 143],
    ["echo ran; exit 255", 255],
  ] as const
) {
  Deno.test(`run by hand ends as its command, and adds nothing: ${script}`, async () => {
    const args = ["run", "-m", JOB.machine, "--", "sh", "-c", script];
    const ended = await runOnGuest(args, {});
    assert.deepEqual([ended.status, ended.stdout], [status, "ran\n"]);
    assert.match(ended.stderr, /^(Terminated\n)?$/); // which the guest's shell says
  });
}

Deno.test("run under GitLab Runner ends with the runner's status, the script's in its file", () =>
  withRunner(async (env) => {
    const args = ["run", "-m", JOB.machine, "script", "build_script"];
    const ended = await runOnGuest(args, env);
    assert.deepEqual(ended, { status: 11, stdout: "ran\n", stderr: "" });
    assert.equal(await Deno.readTextFile(env["BUILD_EXIT_CODE_FILE"] ?? ""), "7\n");
  }));

Deno.test("run by hand ends with 255 if there is no machine, and says so", async () => {
  const args = ["run", "-m", "nothing", "--", "true"];
  const { status, stderr } = await onHostWith("somebody.qcow2", args);
  assert.equal(status, 255);
  assert.match(stderr, /^libvirt-gci: .*"nothing"/);
});

Deno.test("there are completions for five shells", async () => {
  for (const shell of ["bash", "zsh", "fish", "nu", "pwsh"]) {
    const { status, stdout } = await program(["completions", shell]);
    assert.equal(status, 0);
    assert.match(stdout, /libvirt-gci/);
  }
});

Deno.test("--version says the version, and that the program runs from source", async () => {
  for (const args of [["--version"], ["--debug", "--version"]]) {
    const { status, stdout } = await program(args);
    assert.equal(status, 0);
    assert.match(stdout, /^libvirt-gci \d+\.\d+\.\d+\S* \(from source\)\n$/);
  }
});
