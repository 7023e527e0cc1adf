// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { Finding } from "../../src/doctor/finding.ts";
import { registerCommand } from "../../src/doctor/register_command.ts";
import { checkRunner } from "../../src/doctor/runner.ts";
import { parseRunnerConfig } from "../../src/doctor/runner_config.ts";
import { allOk, HEALTHY, type HostDifferences, look, notOk, only } from "../fakes/test_doctor.ts";

const FILE = "/etc/gitlab-runner/config.toml";
const TOML = String(HEALTHY[FILE]);

/** What the doctor finds in config.toml, after these texts have been replaced. */
async function lookAtRunner(
  replacements: Readonly<Record<string, string>>,
  differences: HostDifferences = {},
): Promise<Finding[]> {
  let toml = TOML;
  for (const [from, to] of Object.entries(replacements)) {
    assert.ok(toml.includes(from), from);
    toml = toml.replaceAll(from, to);
  }
  const files = { ...differences.files, [FILE]: toml };
  const findings = await look(checkRunner, { ...differences, files });
  assert.doesNotMatch(JSON.stringify(findings), /glrt-secret/);
  return findings;
}

const REGISTER = /^gitlab-runner register .* --custom-run-exec \/usr\/local\/bin\/libvirt-gci /;

Deno.test("the README and the tutorial register a runner by the doctor's command", async () => {
  for (const page of ["README.md", "docs/tutorials/first-runner.md"]) {
    const text = await Deno.readTextFile(new URL(`../../${page}`, import.meta.url));
    const [block = ""] = /^ *gitlab-runner register (.*\\\n)*.*$/m.exec(text) ?? [];
    assert.equal(
      block.trim().replaceAll(/\\\n */g, ""),
      registerCommand("/usr/local/bin/libvirt-gci"),
      page,
    );
  }
});

Deno.test("what the command to register says of the stages is the runner's section", () => {
  const words = registerCommand("/usr/local/bin/libvirt-gci").split(" ");
  const section: Record<string, string | string[]> = {};
  words.forEach((word, index) => {
    const [, stage, what] = /^--custom-(\w+)-(exec|args)$/.exec(word) ?? [];
    const value = words[index + 1] ?? "";
    if (what === "exec") section[`${stage}_exec`] = value;
    if (what === "args") section[`${stage}_args`] = [section[`${stage}_args`] ?? [], value].flat();
  });
  const { custom } = parseRunnerConfig(TOML).runners[0] ?? {};
  assert.deepEqual({ ...custom, ...section }, custom);
  assert.equal(Object.keys(section).length, 8);
});

Deno.test("where there is no runner yet, the doctor says how to register this very program", async () => {
  const program = "/opt/a b/libvirt-gci";
  for (const text of [undefined, "concurrent = 1"]) {
    const [found] = await look(checkRunner, { program, files: { [FILE]: text } });
    assert.equal(found?.remedy, registerCommand(program));
  }
  assert.match(registerCommand(program), / --custom-config-exec '\/opt\/a b\/libvirt-gci' /);
});

Deno.test("run_args need no --script: run takes the script and its stage without", async () => {
  allOk(await lookAtRunner({ '["run", "--script"]': '["run"]' }));
});

Deno.test("a runner that calls another program is not ours to judge, and has no machine of ours", async () => {
  const other = `[[runners]]
    name = "other"
    executor = "custom"
    [runners.custom]
      prepare_exec = "/opt/other"
      run_exec = "/opt/other"`;
  const findings = await lookAtRunner({ "[[runners]]": `${other}\n[[runners]]\n  limit = 3` });
  allOk(findings);
  assert.deepEqual(findings.map(({ subject }) => subject), [
    'The runner "my-vm-host" calls libvirt-gci for each stage',
    "3 machines at once, of up to 2048 MiB, and the host has 16000 MiB",
  ]);
});

Deno.test("a runner that calls no program at all is told what to call", async () => {
  const findings = await lookAtRunner({ "_exec": "_exec = '' #" });
  const problems = findings.filter(({ level }) => level === "problem");
  assert.equal(problems.length, 4);
  for (const { remedy } of problems) assert.match(remedy ?? "", /_exec = "\/usr\/local\/bin\//);
});

Deno.test("a runner as the README has it is ok", async () => {
  const findings = await lookAtRunner({});
  allOk(findings);
  assert.deepEqual(findings.map(({ subject }) => subject), [
    'The runner "my-vm-host" calls libvirt-gci for each stage',
    "4 machines at once, of up to 2048 MiB, and the host has 16000 MiB",
  ]);
});

const CUSTOM = "[runners.custom]";

for (
  const [from, to, level, subject, remedy] of [
    ['"custom"', '"shell"', "warning", /No runner .* calls libvirt-gci/, REGISTER],
    [
      "local/bin/libvirt-gci",
      "sbin/iptables",
      "warning",
      /No runner .* calls libvirt-gci/,
      REGISTER,
    ],
    ["cleanup_exec", "#", "problem", /has no cleanup_exec/, /# cleanup_exec = /],
    ["prepare_exec", "#", "problem", /has no prepare_exec/, /# prepare_exec = /],
    ["run_exec", "#", "problem", /no run_exec/, /= "\/usr.*, run_args = \["run", "--script"\]/],
    ["config_exec", "#", "problem", /neither config_exec nor builds_dir/, /# config_exec/],
    ['run_args = ["run", "--script"]', "", "problem", /run_args .* lack .* "run"/, /--script/],
    ['"run", "--', '"run --', "problem", /lack .* "run"/, /\["run", "--script"\]$/],
    ['["prepare"]', '["cleanup"]', "problem", /prepare_args .* lack/, /= \["prepare"\]/],
    ['p_exec = "/usr', 'p_exec = "/opt', "problem", /cannot run "\/opt\/local/, /config.toml$/],
    [
      CUSTOM,
      "graceful_kill_timeout = 10",
      "warning",
      /^The graceful_\w+ .* 10 s$/,
      /= 30, or more/,
    ],
    [
      CUSTOM,
      "force_kill_timeout = 1",
      "warning",
      /^The force_kill_timeout .* 1 s$/,
      /= 5, or more/,
    ],
    [CUSTOM, "cleanup_exec_timeout = 5", "warning", /^The cleanup_\w+ .* 5 s$/, /= 30, or more/],
    [
      CUSTOM,
      "prepare_exec_timeout = 60",
      "warning",
      /^The prepare_\w+ .* 60 s$/,
      /= 2100, or more/,
    ],
    ["concurrent = 4", "concurrent = 8", "warning", /8 machines at once/, /# concurrent = 7$/],
    ["concurrent = 4", "concurrent = ", "problem", /cannot read/, /config.toml$/],
    ['"glrt-secret"', '"glrt-secret', "problem", /cannot read/, /config.toml$/],
    ['["prepare"]', '"prepare"', "problem", /cannot read/, /config.toml$/],
  ] as const
) {
  Deno.test(`config.toml is a ${level} with ${to} for ${from}`, async () => {
    const replacement = from === CUSTOM ? `${CUSTOM}\n${to}` : to;
    const findings = await lookAtRunner({ [from]: replacement });
    assert.match(only(notOk(findings), level, subject).remedy ?? "", remedy);
  });
}

Deno.test("a program of the runner that is not executable is a problem", async () => {
  const files = { "/usr/local/bin/libvirt-gci": { text: "", mode: 0o644 } };
  const findings = (await lookAtRunner({}, { files })).filter(({ level }) => level === "problem");
  assert.equal(findings.length, 4);
  assert.equal(findings[0]?.remedy, "chmod +x /usr/local/bin/libvirt-gci");
});

Deno.test("builds_dir and cache_dir take config_exec's place", async () => {
  const directories = 'executor = "custom"\nbuilds_dir = "/b"\ncache_dir = "/c"';
  allOk(await lookAtRunner({ "config_exec": "#", 'executor = "custom"': directories }));
});

Deno.test("limits of runners bound the memory, and the largest template counts", async () => {
  const limited = { "concurrent = 4": "concurrent = 99", 'name = "my-vm-host"': "limit = 7" };
  allOk(await lookAtRunner(limited));
  const yaml = "templates: { giant: { memory_mib: 8192 } }";
  const findings = await lookAtRunner({}, { yaml });
  only(findings.slice(1), "warning", /4 machines at once, of up to 8192 MiB/);
});

Deno.test("more jobs than host.max_machines would wait in prepare", async () => {
  const findings = await lookAtRunner({}, { yaml: "host: {max_machines: 3}" });
  const found = only(
    findings.slice(1),
    "warning",
    /^Up to 4 jobs can run at once, but "host\.max_machines" is 3$/,
  );
  assert.match(found.remedy ?? "", /# concurrent = 3$/);
  allOk(await lookAtRunner({}, { yaml: "host: {max_machines: 4}" }));
});

Deno.test("what becomes of jobs without memory depends on host.overcommit_memory", async () => {
  for (
    const [overcommit, meaning] of [[false, /surplus jobs wait in prepare/], [
      true,
      /swaps/,
    ]] as const
  ) {
    const yaml = `memory_mib: 8192\nhost: {overcommit_memory: ${overcommit}}`;
    const found = only((await lookAtRunner({}, { yaml })).slice(1), "warning", /8192 MiB/);
    assert.match(found.meaning ?? "", meaning);
  }
});

Deno.test("no config.toml is a warning", async () => {
  const files = { [FILE]: undefined };
  only(
    await look(checkRunner, { files }),
    "warning",
    /\/etc\/gitlab-runner\/config.toml does not exist/,
  );
});

Deno.test({
  name: "a config.toml that this user may not read is a warning",
  ignore: Deno.uid() === 0, // who may read all
  async fn() {
    const files = { [FILE]: { text: TOML, mode: 0o000 } };
    only(await look(checkRunner, { files }), "warning", /cannot read/);
  },
});
