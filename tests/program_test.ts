// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";

const ROOT = new URL("..", import.meta.url);

interface Ended {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs main.ts with this whole environment, and nobody's settings. */
async function program(args: string[], env: Record<string, string> = {}): Promise<Ended> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-all", "main.ts", ...args],
    cwd: ROOT,
    clearEnv: true,
    env: { HOME: Deno.env.get("HOME") ?? "/", XDG_CONFIG_HOME: "/nonexistent", ...env },
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

Deno.test("config prints one JSON object, with the machine's name for the later stages", () =>
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
    await Deno.writeTextFile(settings, `uri: ${uri}\n`);
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
    await Deno.writeTextFile(settings, "allowed_templates: []\ntemplates: {a: {user: root}}\n");
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

Deno.test("explain says what a job would get, and does not connect to libvirt", async () => {
  const settings = await Deno.makeTempFile({ prefix: "libvirt-gci-test-" });
  await Deno.writeTextFile(settings, "uri: nonsense:///\nmax_vcpus: 8\n");
  const { status, stdout, stderr } = await program(
    ["--debug", "--config", settings, "explain", "--project", "grp/proj", "--distro", "fedora-40"],
    { CUSTOM_ENV_LIBVIRT_GCI_VCPUS: "4" },
  );
  await Deno.remove(settings);
  assert.deepEqual([status, stderr], [0, ""]);
  assert.match(stdout, /^vcpus +4, by LIBVIRT_GCI_VCPUS; at most 8/m);
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
      /^libvirt-gci: The job asks for LIBVIRT_GCI_VCPUS=3, but the most .* is 2/,
    );
    assert.equal(`libvirt-gci: ${JSON.parse(stdout).refusal}\n`, stderr);
  }));

Deno.test("a settings file that others may write is refused, and says how to mend it", async () => {
  const settings = await Deno.makeTempFile({ prefix: "libvirt-gci-test-" });
  await Deno.chmod(settings, 0o666);
  const { status, stderr } = await program(["--config", settings, "explain"]);
  await Deno.remove(settings);
  assert.equal(status, 2);
  assert.match(stderr, /Somebody else may write the settings: .*\nWhat to do: chmod go-w "/);
});

for (
  const [args, message] of [
    [[], /Usage: libvirt-gci/],
    [["frob"], /frob/],
    [["prepare", "--frob"], /--frob/],
    [["prepare", "--distro"], /--distro/],
    [["run"], /needs a script, or a command behind --/],
    [["run", "script", "--", "true"], /not both/],
    [["cleanup", "--", "true"], /takes nothing behind --/],
    [["explain", "--", "true"], /takes nothing behind --/],
    [["explain", "--variables", "/nonexistent"], /Cannot read the variables/],
    [["cleanup"], /Which machine\?/],
    [["run", "-m", "a/b", "--", "true"], /"a\/b" is no name/],
    [["cleanup", "--machine", ""], /"" is no name/],
  ] as const
) {
  Deno.test(`the arguments ${JSON.stringify(args)} are a mistake that is named, with status 2`, async () => {
    const { status, stderr } = await program([...args]);
    assert.equal(status, 2, stderr);
    assert.match(stderr, message);
  });
}

Deno.test("each command has help", async () => {
  for (const command of ["config", "prepare", "run", "cleanup", "explain"]) {
    const { status, stdout } = await program([command, "--help"]);
    assert.equal(status, 0);
    assert.match(stdout, new RegExp(`Usage: libvirt-gci ${command}`));
  }
});

Deno.test("there are completions for five shells", async () => {
  for (const shell of ["bash", "zsh", "fish", "nu", "pwsh"]) {
    const { status, stdout } = await program(["completions", shell]);
    assert.equal(status, 0);
    assert.match(stdout, /libvirt-gci/);
  }
});

Deno.test("--version says the version and nothing else", async () => {
  const { status, stdout } = await program(["--version"]);
  assert.equal(status, 0);
  assert.match(stdout, /^\d+\.\d+\.\d+\n$/);
});
