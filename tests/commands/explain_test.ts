// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { explainJob, jobToExplain } from "../../src/commands/explain.ts";
import { parseVariables } from "../../src/job/variables_file.ts";
import { parseConfig } from "../../src/settings/read.ts";
import { type Config, DEFAULT_CONFIG } from "../../src/settings/settings.ts";
import { JOB } from "../fakes/test_stage.ts";

const CONFIG = parseConfig(
  `
  limits: {vcpus: 8}
  templates:
    fedora-40: { aliases: [fedora], memory_mib: 4096, ssh: { login: template },
                 network: { host_ports: [tcp/80] }, start: warm, standby: 2, firmware: efi }
  rules:
    - { projects: [trusted/*], limits: {vcpus: 32} }
    - { protected: false, templates: [fedora-*, debian-*], limits: {disk_gib: 60} }
  `,
  "config.yaml",
);

function explained(changes: Partial<typeof JOB>, config: Config = CONFIG): string {
  const { text, refusal } = explainJob({ ...JOB, ...changes }, config, { json: false });
  assert.equal(refusal, null);
  return text;
}

Deno.test("explain says what the job gets, where each size is from, and which rule holds", () => {
  const requests = { ...JOB.requests, vcpus: "4", diskGib: "50" };
  assert.deepEqual(explained({ template: "fedora", requests }).split("\n"), [
    'template  "fedora-40", which the job calls "fedora"',
    'volume    "fedora-40" as template add added it, else "fedora-40.qcow2" or "fedora-40", in the storage ' +
    'pool "base_imgs"',
    "vcpus     4, from LIBVIRT_GCI_VCPUS; at most 8, from this host's settings",
    'memory    4096 MiB, from the template "fedora-40"; at most 4096 MiB, from this host\'s settings, ' +
    'which have no "limits.memory_mib"',
    "disk      50 GiB, from LIBVIRT_GCI_DISK_GIB; at most 60 GiB, from rule 2 (rules[1])",
    "kept      after a failure: 0 min, from this host's settings; at most 0 min, from this host's settings, which have " +
    'no "limits.keep_minutes"',
    "nested    no, from this host's settings; not allowed by this host's settings",
    "start     warm, or one of 2 standby machines, with the firmware efi",
    'login     template, as the user "gitlab-runner"',
    'network   "default"',
    "isolated  yes, except for tcp/80 of the host; also from 169.254.0.0/16",
    "rule      rule 2 (rules[1])",
    '          rule 1 (rules[0]) does not apply: it is for trusted/*, but the project is "grp/proj"',
    "          rule 2 (rules[1]) applies: it is for refs that are not protected, and the job's ref is one",
  ]);
});

Deno.test("explain says so where there is no rule, or none that fits", () => {
  assert.match(explained({}, DEFAULT_CONFIG), /^rule +none: there are no rules$/m);
  assert.match(explained({ isProtected: true }), /^rule +none: no rule applies$/m);
});

Deno.test("explain says whose the template is", () => {
  const config = parseConfig("default_template: debian-12", "config.yaml");
  assert.match(
    explained({ template: null }, config),
    /"debian-12", the default, because the job names none/,
  );
  assert.match(explained({ isTemplateFromOperator: true }), /which --distro calls/);
});

Deno.test("explain gives the same as JSON, for programs", () => {
  const { text } = explainJob(JOB, CONFIG, { json: true });
  const { sizes, reasons, ...others } = JSON.parse(text);
  assert.deepEqual(others, {
    project: "grp/proj",
    protected: false,
    rule: "rule 2 (rules[1])",
    template: "debian-12",
    pools: { templates: "base_imgs" },
    volumes: ["debian-12.qcow2", "debian-12"],
    keep_minutes: {
      value: 0,
      from: "this host's settings",
      max: 0,
      max_from: 'this host\'s settings, which have no "limits.keep_minutes"',
    },
    nested: {
      value: false,
      from: "this host's settings",
      allowed: false,
      allowed_by: "this host's settings",
    },
    start: "cold",
    standby: 0,
    firmware: "bios",
    ssh: { login: "cloud-init", user: "gitlab-runner" },
    network: {
      name: "default",
      isolate: true,
      host_ports: [],
      blocked: ["169.254.0.0/16"],
    },
    max_machines_of_project: null,
  });
  assert.equal(reasons.length, 2);
  assert.deepEqual(sizes.disk_gib, {
    value: null,
    from: "this host's settings",
    max: 60,
    max_from: "rule 2 (rules[1])",
  });
});

Deno.test("explain says how many machines a rule lets the job's project have", () => {
  const config = parseConfig("rules: [{projects: [grp/*], max_machines: 3}]", "config.yaml");
  const row = /^machines +at most 3 for each project at once, from rule 1 \(rules\[0\]\)$/m;
  assert.match(explained({}, config), row);
  assert.doesNotMatch(explained({ project: "a/b" }, config), /^machines/m);
  const { text } = explainJob(JOB, config, { json: true });
  assert.equal(JSON.parse(text).max_machines_of_project, 3);
});

Deno.test("explain tells of a refusal which rule holds, and hands over what prepare would say", () => {
  for (const json of [false, true]) {
    const { text, refusal } = explainJob({ ...JOB, template: "x\x1b" }, CONFIG, { json });
    assert.match(text, /rule 2 \(rules\[1\]\)/);
    assert.match(refusal?.message ?? "", /"x\\u001b", which is not a valid template name/);
    assert.match(
      refusal?.advice ?? "",
      /DISTRO to a template .* may have: fedora-40 \(or fedora\), fedora-\*, debian-\*$/,
    );
    if (json) assert.match(JSON.parse(text).refusal, /not a valid template name .*\nWhat to do: /);
  }
});

Deno.test("explain prints no control characters of a job", () => {
  const hostile = "a\x1b[2J\x07\x85\u202e\u2028\u{e0001}";
  const job = { ...JOB, project: hostile, requests: { ...JOB.requests, vcpus: hostile } };
  for (const json of [false, true]) {
    const { text } = explainJob(job, CONFIG, { json });
    assert.doesNotMatch(text.replaceAll("\n", ""), /[\p{C}\p{Zl}\p{Zp}]/u);
    if (json) assert.equal(JSON.parse(text).project, hostile);
  }
});

async function withFile(text: string, use: (file: string) => Promise<void>): Promise<void> {
  const file = await Deno.makeTempFile({ prefix: "libvirt-gci-test-" });
  try {
    await Deno.writeTextFile(file, text);
    await use(file);
  } finally {
    await Deno.remove(file);
  }
}

Deno.test("explain takes a job's variables from a file, in place of the environment's", () =>
  withFile("DISTRO=debian-12\nCUSTOM_ENV_LIBVIRT_GCI_VCPUS='4'\n", async (variables) => {
    const env = { CUSTOM_ENV_DISTRO: "other", CUSTOM_ENV_LIBVIRT_GCI_NESTED: "true" };
    const { template, requests } = await jobToExplain({ variables, protected: false }, env);
    assert.equal(template, "debian-12");
    assert.deepEqual(requests, { ...JOB.requests, vcpus: "4" });
  }));

Deno.test("a file of variables cannot stand for what GitLab Runner sets", () =>
  withFile(
    "JOB_RESPONSE_FILE=/x\nBUILD_FAILURE_EXIT_CODE=0\nLIBVIRT_GCI_MACHINE=x",
    async (file) => {
      const { byHand, machine } = await jobToExplain({ variables: file, protected: false }, {});
      assert.deepEqual([byHand, machine], [true, null]);
    },
  ));

for (
  const [options, env, expected] of [
    [{}, {}, [null, null]],
    [{ project: "a/b" }, {}, ["a/b", false]],
    [{ protected: true }, {}, [null, true]],
    [{ project: "a/b", protected: true }, {}, ["a/b", true]],
    [{ project: "a/b" }, { CUSTOM_ENV_CI_COMMIT_REF_PROTECTED: "true" }, ["a/b", true]],
  ] as const
) {
  Deno.test(`explain with ${JSON.stringify({ ...options, ...env })} knows ${expected}`, async () => {
    const job = await jobToExplain({ protected: false, ...options }, env);
    assert.deepEqual([job.project, job.isProtected], expected);
  });
}

Deno.test("under GitLab Runner, explain's options do not say more than GitLab", () =>
  withFile(
    JSON.stringify({ id: 1, job_info: { project_name: "p", project_full_path: "g/p" } }),
    async (file) => {
      const options = { project: "trusted/a", protected: true, distro: "x" };
      const job = await jobToExplain(options, { JOB_RESPONSE_FILE: file });
      assert.deepEqual([job.project, job.isProtected, job.template], ["g/p", false, "x"]);
      assert(job.isTemplateFromOperator);
    },
  ));

for (
  const [line, value] of [
    ["A=b", "b"],
    ["A=", ""],
    ["A=''", ""],
    ["A='b c'", "b c"],
    ['A="b"', "b"],
    ["A=\"b 'c'\"", "b 'c'"],
    ["A='\"b\"'", '"b"'],
    ["  A=b  \r", "b"],
    ["A=b=c", "b=c"],
    ["A=b # c", "b # c"],
    ["A=it's", "it's"],
    ["A=$B\\n", "$B\\n"],
    ["CUSTOM_ENV_A=b", "b"],
  ] as const
) {
  Deno.test(`the line ${JSON.stringify(line)} of a file sets the variable to ${value}`, () => {
    assert.deepEqual(parseVariables(line, "f"), [["CUSTOM_ENV_A", value]]);
  });
}

Deno.test("empty lines and comments of a file of variables set none", () => {
  assert.deepEqual(parseVariables("\n  \n# A=b\n  # c\n", "f"), []);
});

for (const line of ["A", "=b", "1A=b", "A B=c", "A-B=c", "A='b", "A='", "A=\"b' ", "export A=b"]) {
  Deno.test(`the line ${JSON.stringify(line)} is no variable, and is not printed`, () => {
    assert.throws(() => parseVariables(`A=b\n${line}\n`, "job.env"), {
      name: "UsageError",
      message: 'Line 2 of "job.env" is not a variable',
      advice: /KEY=VALUE/,
    });
  });
}

Deno.test("a file of variables that is not there is the operator's mistake", async () => {
  await assert.rejects(jobToExplain({ variables: "/nonexistent", protected: false }, {}), {
    name: "UsageError",
    message: 'Cannot read the variables in "/nonexistent"',
  });
});
