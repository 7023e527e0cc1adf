// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import { BuildFailure } from "../../src/errors.ts";
import type { Job, SizeRequests } from "../../src/job/job.ts";
import { decide, type Decision, findRule, hasProjectLimit } from "../../src/policy/decide.ts";
import { fits, type TemplateChoice } from "../../src/policy/template_choice.ts";
import { parseConfig } from "../../src/settings/read.ts";
import { type Config, DEFAULT_CONFIG, type Rule } from "../../src/settings/settings.ts";
import { JOB } from "../fakes/test_stage.ts";

/** A job that differs so from {@linkcode JOB}. */
function job({ requests, ...changes }: Partial<Omit<Job, "requests">> & {
  readonly requests?: Partial<SizeRequests>;
} = {}): Job {
  return { ...JOB, ...changes, requests: { ...JOB.requests, ...requests } };
}

function settings(yaml: string): Config {
  return parseConfig(yaml, "config.yaml");
}

const RULES = settings(`
  rules:
    - { projects: [trusted/*, one/project], protected: true, limits: {vcpus: 32} }
    - { projects: [trusted/*], limits: {vcpus: 16} }
    - { protected: false, limits: {vcpus: 4} }
    - { protected: true, limits: {vcpus: 8} }
`);

for (
  const [project, isProtected, rule] of [
    ["trusted/a", true, "rule 1 (rules[0])"],
    ["trusted/a/b", true, "rule 1 (rules[0])"],
    ["one/project", true, "rule 1 (rules[0])"],
    ["trusted/a", false, "rule 2 (rules[1])"],
    ["trusted/a", null, "rule 2 (rules[1])"],
    ["trusted", true, "rule 4 (rules[3])"],
    ["un/trusted/a", true, "rule 4 (rules[3])"],
    ["Trusted/a", false, "rule 3 (rules[2])"],
    ["other/a", null, undefined],
  ] as const
) {
  const state = isProtected === null ? "unknown" : isProtected ? "protected" : "not protected";
  Deno.test(`for ${project} and a ref that is ${state}, ${rule ?? "no rule"} holds`, () => {
    assert.equal(findRule(job({ project, isProtected }), RULES).rule?.name, rule);
  });
}

Deno.test("the reasons say of each rule, up to the one that holds, why", () => {
  assert.deepEqual(findRule(job({ project: "a\x1b/b", isProtected: true }), RULES).reasons, [
    'rule 1 (rules[0]) does not apply: it is for trusted/*, one/project, but the project is "a\\u001b/b"',
    'rule 2 (rules[1]) does not apply: it is for trusted/*, but the project is "a\\u001b/b"',
    "rule 3 (rules[2]) does not apply: it is for refs that are not protected, but the job's ref is " +
    "protected",
    "rule 4 (rules[3]) applies: it is for protected refs, and the job's ref is one",
  ]);
});

Deno.test("by hand, what is unknown fits no rule that asks for it", () => {
  const unknown = job({ project: null, isProtected: null, byHand: true });
  const { rule, reasons } = findRule(unknown, RULES);
  assert.equal(rule, null);
  assert.match(reasons.join("\n"), /but the project is unknown\n.*the job's ref is unknown/s);
});

Deno.test("under GitLab Runner, a job whose project is unknown is refused where there are rules", () => {
  assert.throws(() => decide(job({ project: null }), RULES), {
    name: "SystemFailure",
    message: /the job's project is unknown/,
  });
  decide(job({ project: null }), DEFAULT_CONFIG);
});

Deno.test("a job that asks for nothing gets what the settings say", () => {
  const { choice, settings, sizes } = decide(job(), DEFAULT_CONFIG);
  assert.equal(choice.name, "debian-12");
  assert.deepEqual(settings, DEFAULT_CONFIG.machine);
  assert.equal(choice.settings, settings);
  assert.deepEqual(sizes.vcpus, {
    value: 2,
    from: "this host's settings",
    cap: 2,
    capFrom: 'this host\'s settings, which have no "limits.vcpus"',
  });
});

Deno.test("a job gets the sizes that it asks for, up to what the settings allow", () => {
  const config = settings(
    "limits: {vcpus: 8, memory_mib: 8192, disk_gib: 50, nested: true}",
  );
  for (
    const [requests, expected] of [
      [{ vcpus: "8" }, { vcpus: 8 }],
      [{ vcpus: "1" }, { vcpus: 1 }],
      [{ memoryMib: "8192" }, { memoryMib: 8192 }],
      [{ memoryMib: "64" }, { memoryMib: 64 }],
      [{ diskGib: "50" }, { diskGib: 50 }],
      [{ nested: "true" }, { nested: true }],
      [{ nested: "false" }, { nested: false }],
    ] as const
  ) {
    const decision = decide(job({ requests }), config);
    assert.deepEqual(decision.settings, { ...config.machine, ...expected });
  }
});

Deno.test("by default, a job may ask for less and not for more", () => {
  assert.equal(decide(job({ requests: { vcpus: "1" } }), DEFAULT_CONFIG).settings.vcpus, 1);
  assert.throws(() => decide(job({ requests: { vcpus: "3" } }), DEFAULT_CONFIG), {
    name: "BuildFailure",
    message: "The job asks for LIBVIRT_GCI_VCPUS=3, but at most 2 is allowed by this " +
      'host\'s settings, which have no "limits.vcpus"',
    advice:
      /^Set the variable LIBVIRT_GCI_VCPUS to 2 or less, or ask the administrator to raise "limits\.vcpus"$/,
  });
});

Deno.test("by default, a job may ask for no disk", () => {
  assert.throws(() => decide(job({ requests: { diskGib: "1" } }), DEFAULT_CONFIG), {
    name: "BuildFailure",
    message:
      /LIBVIRT_GCI_DISK_GIB=1, but .* no "limits\.disk_gib", allow no other disk than the template/,
    advice:
      /^Omit the variable LIBVIRT_GCI_DISK_GIB, or ask the administrator to set "limits\.disk_gib"$/,
  });
  const config = settings("disk_gib: 20");
  assert.equal(decide(job({ requests: { diskGib: "20" } }), config).settings.diskGib, 20);
  assert.throws(
    () => decide(job({ requests: { diskGib: "21" } }), config),
    /at most 20 is allowed by/,
  );
});

Deno.test("the decision bounds the template's disk too, but only if somebody set a bound", () => {
  assert.equal(decide(job(), settings("disk_gib: 20")).settings.limits.diskGib, null);
  assert.equal(decide(job(), settings("limits: {disk_gib: 20}")).settings.limits.diskGib, 20);
  const raised = settings("limits: {disk_gib: 20}\nrules: [{limits: {disk_gib: 30}}]");
  assert.equal(decide(job(), raised).settings.limits.diskGib, 30);
  const config = settings(
    "templates: {debian-12: {limits: {disk_gib: 7}}}\nrules: [{limits: {disk_gib: 9}}]",
  );
  assert.equal(decide(job(), config).settings.limits.diskGib, 7);
});

const CAPS = settings(`
  limits: {vcpus: 8}
  templates:
    debian-12:
    small: { limits: {vcpus: 4} }
    large: { limits: {vcpus: 64} }
  rules:
    - { projects: [many/*], limits: {vcpus: 16} }
    - { projects: [few/*], limits: {vcpus: 2} }
    - { projects: [same/*], limits: {memory_mib: 4096} }
`);

for (
  const [template, project, cap, capFrom] of [
    ["debian-12", "a/b", 8, "this host's settings"],
    ["small", "a/b", 4, 'the template "small"'],
    ["large", "a/b", 8, "this host's settings"],
    ["unnamed", "a/b", 8, "this host's settings"],
    ["debian-12", "many/a", 16, "rule 1 (rules[0])"],
    ["small", "many/a", 4, 'the template "small"'],
    ["large", "many/a", 16, "rule 1 (rules[0])"],
    ["small", "few/a", 2, "rule 2 (rules[1])"],
    ["debian-12", "same/a", 8, "this host's settings"],
  ] as const
) {
  Deno.test(`a job of ${project} may ask for ${cap} vcpus of ${template}, by ${capFrom}`, () => {
    const asking = (vcpus: number): Job =>
      job({ template, project, requests: { vcpus: String(vcpus) } });
    const { value, from, cap: most, capFrom: whose } = decide(asking(cap), CAPS).sizes.vcpus;
    assert.deepEqual([value, from, most, whose], [cap, "LIBVIRT_GCI_VCPUS", cap, capFrom]);
    assert.throws(() => decide(asking(cap + 1), CAPS), {
      name: "BuildFailure",
      message: `The job asks for LIBVIRT_GCI_VCPUS=${cap + 1}, but at most ${cap} is ` +
        `allowed by ${capFrom}`,
    });
  });
}

Deno.test("a template that is larger than a rule allows tells the job to ask for less", () => {
  const config = settings(
    "templates: {debian-12: {memory_mib: 8192}}\nrules: [{limits: {memory_mib: 512}}]",
  );
  assert.throws(() => decide(job(), config), {
    name: "BuildFailure",
    message: 'A machine of the template "debian-12" has memory_mib: 8192, but at most 512 is ' +
      "allowed by rule 1 (rules[0])",
    advice: /^Set the variable LIBVIRT_GCI_MEMORY_MIB to 512 or less/,
  });
  assert.equal(decide(job({ requests: { memoryMib: "512" } }), config).settings.memoryMib, 512);
});

Deno.test("what an alias or a volume names has the template's sizes", () => {
  const config = settings(
    "limits: {vcpus: 8}\ntemplates: {small: {volume: s.img, aliases: [s], limits: {vcpus: 2}}}",
  );
  for (const template of ["small", "s", "s.img", "small.qcow2"]) {
    assert.throws(
      () => decide(job({ template, requests: { vcpus: "3" } }), config),
      /at most 2 is allowed by/,
    );
  }
});

Deno.test("--distro is free to name any template, but not of any size", () => {
  const config = settings("allowed_templates: []\nrules: [{templates: [], limits: {vcpus: 2}}]");
  const operators = job({ template: "other", isTemplateFromOperator: true });
  assert.equal(decide(operators, config).choice.name, "other");
  assert.match(decide(operators, config).advise(["any.qcow2"]), /: any$/);
  assert.throws(
    () => decide({ ...operators, requests: { ...JOB.requests, vcpus: "3" } }, config),
    /at most 2 is allowed by rule 1/,
  );
});

Deno.test("a decision tells what else of the templates that are there the job may have", () => {
  const { advise } = decide(job(), settings("allowed_templates: [debian-*]"));
  assert.equal(
    advise(["debian-11.qcow2", "a.qcow2", "debian-12"]),
    "Set image: or the variable DISTRO to a template that this job may have: debian-11, debian-12",
  );
});

for (
  const value of [
    "",
    " 4",
    "4 ",
    "4\n",
    ..."0 -1 +4 04 4.0 1e3 0x10 123456789 four 4k NaN Infinity ٤ \x1b[31m 4;5 true".split(" "),
  ]
) {
  Deno.test(`the size ${JSON.stringify(value)} is none, which is the job's fault`, () => {
    const fields: Record<string, string> = {
      vcpus: "VCPUS",
      memoryMib: "MEMORY_MIB",
      diskGib: "DISK_GIB",
    };
    if (value !== "0") fields["keepMinutes"] = "KEEP_MINUTES";
    for (const [field, name] of Object.entries(fields)) {
      assert.throws(() => decide(job({ requests: { [field]: value } }), DEFAULT_CONFIG), {
        name: "BuildFailure",
        message: new RegExp(`LIBVIRT_GCI_${name}=".*", which is not a whole number`),
        advice: /digits only/,
      });
    }
  });
}

Deno.test("a job's machine is kept as long as it asks for within the bound, by default not", () => {
  const minutes = (yaml: string, keepMinutes: string | null = null): number =>
    decide(job({ requests: { keepMinutes } }), settings(yaml)).settings.keepMinutes;
  assert.equal(minutes(""), 0);
  assert.equal(minutes("", "0"), 0);
  assert.throws(() => minutes("", "1"), {
    name: "BuildFailure",
    message: "The job asks for LIBVIRT_GCI_KEEP_MINUTES=1, but at most 0 is allowed by " +
      'this host\'s settings, which have no "limits.keep_minutes"',
  });
  assert.equal(minutes("keep_minutes: 30"), 30);
  assert.equal(minutes("keep_minutes: 30", "0"), 0);
  assert.equal(minutes("limits: {keep_minutes: 60}"), 0);
  assert.equal(minutes("limits: {keep_minutes: 60}", "60"), 60);
  assert.throws(
    () => minutes("limits: {keep_minutes: 60}", "61"),
    /at most 60 is allowed by this host's settings$/,
  );
});

Deno.test("a rule that keeps machines less long than the settings refuses no job for it", () => {
  const config = settings("keep_minutes: 30\nrules: [{limits: {keep_minutes: 0}}]");
  const { value, from, cap } = decide(job({}), config).sizes.keepMinutes;
  assert.deepEqual([value, from, cap], [0, "rule 1 (rules[0])", 0]);
  assert.throws(
    () => decide(job({ requests: { keepMinutes: "30" } }), config),
    /at most 0 is allowed by rule 1/,
  );
});

Deno.test("memory has the least size that it has in the settings", () => {
  assert.throws(() => decide(job({ requests: { memoryMib: "63" } }), DEFAULT_CONFIG), {
    message: /"63", which is not a whole number of at least 64/,
  });
});

Deno.test("a long word for a size is cut in the message", () => {
  assert.throws(() => decide(job({ requests: { vcpus: "x".repeat(9999) } }), DEFAULT_CONFIG), {
    message: `The job asks for LIBVIRT_GCI_VCPUS="${"x".repeat(60)}…", ` +
      "which is not a whole number of at least 1",
  });
});

for (
  const [yaml, project, isAllowed, capFrom] of [
    ["", "a/b", false, "this host's settings"],
    ["limits: {nested: true}", "a/b", true, ""],
    ["nested: true", "a/b", true, ""],
    ["templates: {debian-12: {nested: true}}", "a/b", true, ""],
    ["templates: {debian-12: {limits: {nested: true}}}", "a/b", false, "this host's settings"],
    [
      "limits: {nested: true}\ntemplates: {debian-12: {limits: {nested: false}}}",
      "a/b",
      false,
      'the template "debian-12"',
    ],
    ["rules: [{projects: [a/*], limits: {nested: true}}]", "a/b", true, ""],
    ["rules: [{projects: [a/*], limits: {nested: true}}]", "b/b", false, "this host's settings"],
    [
      "limits: {nested: true}\nrules: [{projects: [a/*], limits: {nested: false}}]",
      "a/b",
      false,
      "rule 1 (rules[0])",
    ],
    [
      "templates: {debian-12: {limits: {nested: false}}}\nrules: [{limits: {nested: true}}]",
      "a/b",
      false,
      'the template "debian-12"',
    ],
  ] as const
) {
  const what = `of ${project} may ${isAllowed ? "" : "not "}ask for nested machines`;
  Deno.test(`a job ${what} with ${JSON.stringify(yaml)}`, () => {
    const asking = job({ project, requests: { nested: "true" } });
    if (isAllowed) return assert.equal(decide(asking, settings(yaml)).settings.nested, true);
    assert.throws(() => decide(asking, settings(yaml)), {
      name: "BuildFailure",
      message: "The job asks for LIBVIRT_GCI_NESTED=true, but " +
        `"limits.nested" of ${capFrom} is false`,
    });
  });
}

for (const value of ["", "yes", "1", "True", "true\n", "\x1b"]) {
  Deno.test(`LIBVIRT_GCI_NESTED=${JSON.stringify(value)} is neither true nor false`, () => {
    const config = settings("limits: {nested: true}");
    assert.throws(() => decide(job({ requests: { nested: value } }), config), {
      name: "BuildFailure",
      message: `The job asks for LIBVIRT_GCI_NESTED=${JSON.stringify(value)}, ` +
        "which is neither true nor false",
    });
  });
}

const name = fc.constantFrom(
  ..."fedora-34 f34 fedora.img fedora debian-12 ci-1 ci- other secret".split(" "),
);
const hostile = fc.oneof(
  name,
  name.map((name) => `${name}.qcow2`),
  fc.tuple(name, fc.constantFrom("/", "\0", "\n", "..", " ", "%2f", "\\", ".libvirt-gci", "\u202e"))
    .map((pair) => pair.join("")),
  fc.tuple(fc.constantFrom("../", "/", "./", ".", "-", " "), name).map((pair) => pair.join("")),
  fc.string({ unit: "binary", maxLength: 40 }),
  fc.string({ unit: "grapheme", maxLength: 40 }),
  fc.constantFrom("", "__proto__", "constructor", "a".repeat(200), "a".repeat(100_000), "*"),
);
const request = fc.oneof(
  { weight: 14, arbitrary: fc.constant(null) },
  { weight: 2, arbitrary: fc.nat({ max: 70 }).map(String) },
  fc.nat({ max: 100_000 }).map(String),
  fc.constantFrom("true", "false", "0", "1e9", "99999999", "999999999", " 1", "1\n"),
  fc.string({ maxLength: 10 }),
);
const someJob = fc.record({
  project: fc.option(
    fc.oneof(fc.constantFrom("a/b", "a/c", "b/a", "a/", "*", "a/b/c"), hostile),
  ),
  isProtected: fc.constantFrom(true, false, null),
  template: fc.oneof(name, hostile, fc.constant(null)),
  isTemplateFromOperator: fc.boolean(),
  requests: fc.record({
    vcpus: request,
    memoryMib: request,
    diskGib: request,
    nested: request,
    keepMinutes: request,
  }),
}).map((changes): Job => ({
  ...JOB,
  ...changes,
  isTemplateFromOperator: changes.isTemplateFromOperator && changes.template !== null,
  byHand: changes.project === null,
}));

const pattern = fc.constantFrom("*", "ci-*", "fedora*", "*3*4", "debian-12", "secret", "other");
const patterns = fc.array(pattern, { maxLength: 3 });
const some = <T>(value: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
  fc.option(value, { nil: undefined });
const caps = {
  vcpus: some(fc.integer({ min: 8, max: 64 })),
  memory_mib: some(fc.integer({ min: 8192, max: 90_000 })),
  disk_gib: some(fc.integer({ min: 40, max: 90 })),
  keep_minutes: some(fc.integer({ min: 60, max: 90 })),
  nested: some(fc.boolean()),
};
const machine = {
  limits: fc.record(caps),
  vcpus: some(fc.integer({ min: 1, max: 8 })),
  disk_gib: some(fc.integer({ min: 1, max: 40 })),
  keep_minutes: some(fc.integer({ min: 0, max: 60 })),
  nested: some(fc.boolean()),
};
const someConfig = fc.record({
  ...machine,
  default_template: some(name),
  allowed_templates: some(patterns),
  templates: fc.record({
    "fedora-34": fc.record({
      ...machine,
      volume: some(fc.constantFrom("fedora.img", "fedora.qcow2", "secret")),
      aliases: some(fc.constantFrom([], ["f34", "registry/fedora:34"])),
    }),
    "debian-12": fc.record(machine),
  }),
  rules: fc.array(
    fc.record({
      projects: fc.constantFrom(["a/*"], ["a/b", "b/*"], ["*"]),
      protected: some(fc.boolean()),
      templates: some(patterns),
      limits: fc.record({
        ...caps,
        keep_minutes: some(fc.nat({ max: 90 })),
        vcpus: fc.integer({ min: 1, max: 64 }),
      }),
    }),
    { maxLength: 3 },
  ),
}).map((raw) => parseConfig(JSON.stringify(raw), "config.yaml"));

const FIELDS = {
  vcpus: "vcpus",
  memory_mib: "memoryMib",
  disk_gib: "diskGib",
  keep_minutes: "keepMinutes",
} as const;

/** The most that a job may have of something, worked out in another way. */
function mostOf(
  { config, rule, template }: {
    readonly config: Config;
    readonly rule: Rule | null;
    readonly template: string;
  },
  key: keyof typeof FIELDS,
): number {
  const size = FIELDS[key];
  const entry = config.templates.get(template);
  const words = [
    rule?.limits[size] ?? config.machine.limits[size],
    entry?.ownKeys.has(`limits.${key}`) ? entry.machine.limits[size] : null,
  ].filter((word) => word !== null);
  return words.length > 0 ? Math.min(...words) : (entry?.machine ?? config.machine)[size] ?? 0;
}

/** Whether the settings let the job have this template, worked out in another way. */
function mayHave(
  { config, rule, job }: { readonly config: Config; readonly rule: Rule | null; readonly job: Job },
  { name, volumes }: TemplateChoice,
): boolean {
  if (job.isTemplateFromOperator) return true;
  const { allowedTemplates, defaultTemplate, templates } = config;
  const fitsOne = (patterns: readonly string[]): boolean =>
    patterns.some((pattern) => fits(pattern, name));
  if (rule?.templates && !fitsOne(rule.templates)) return false;
  if (templates.has(name) || job.template === null) return true;
  // A job cannot ask for a template of the settings by the name of its volume.
  if ([...templates.values()].some(({ volume }) => volume && volumes.includes(volume))) {
    return false;
  }
  return fitsOne(allowedTemplates) || name === defaultTemplate;
}

function assertWithinSettings(job: Job, config: Config, decision: Decision): void {
  const { choice, settings, advise } = decision;
  const { rule } = findRule(job, config);
  const whose = { config, rule, template: choice.name };
  const { vcpus, memoryMib, diskGib, keepMinutes, nested } = settings;
  assert(1 <= vcpus && vcpus <= mostOf(whose, "vcpus"));
  assert(64 <= memoryMib && memoryMib <= mostOf(whose, "memory_mib"));
  assert(diskGib === null || (1 <= diskGib && diskGib <= mostOf(whose, "disk_gib")));
  assert(0 <= keepMinutes && keepMinutes <= mostOf(whose, "keep_minutes"));
  const usual = config.templates.get(choice.name)?.machine ?? config.machine;
  const mayHaveUsual = usual.nested && rule?.limits.nested !== false;
  assert(!nested || mayHaveUsual || (rule?.limits.nested ?? config.machine.limits.nested));
  for (const volume of choice.volumes) assert.doesNotMatch(volume, /\/|\p{Cc}/u);
  assert(mayHave({ config, rule, job }, choice));
  const name = choice.name.replace(/\W/g, "\\$&");
  assert.match(advise(choice.volumes), new RegExp(`[:,] ${name}( \\(or |,|$)`));
}

Deno.test("the first rule that fits says how many machines a project may have, and no other", () => {
  const config = settings(`
    rules:
      - { projects: [a/*], max_machines: 9 }
      - { projects: [b/*], limits: {vcpus: 9} }
      - { max_machines: 1 }
  `);
  assert(hasProjectLimit(config) && !hasProjectLimit(RULES));
  const most = (project: string) => decide(job({ project }), config).rule?.maxMachines;
  assert.deepEqual(["a/b", "b/b", "c/b"].map(most), [9, null, 1]);
  assert.equal(decide(job(), DEFAULT_CONFIG).rule, null);
});

Deno.test("a rule that does not allow nested machines takes them away where nobody asked", () => {
  const config = settings(
    "templates: {debian-12: {nested: true}}\nrules: [{projects: [a/*], limits: {nested: false}}]",
  );
  assert.equal(decide(job({ project: "b/b" }), config).settings.nested, true);
  assert.equal(decide(job({ project: "a/b" }), config).settings.nested, false);
});

Deno.test("no job gets a size, a volume or a template that the settings do not give it", () => {
  const counts = { given: 0, refused: 0 };
  fc.assert(
    fc.property(someConfig, fc.array(someJob, { minLength: 10, maxLength: 10 }), (config, jobs) => {
      for (const job of jobs) {
        try {
          assertWithinSettings(job, config, decide(job, config));
          counts.given++;
        } catch (error) {
          assert(error instanceof BuildFailure, Deno.inspect(error));
          assert.doesNotMatch(error.message + error.advice, /\p{Cc}|\u202e/u);
          assert(error.message.length < 400, error.message);
          counts.refused++;
        }
      }
    }),
    { numRuns: 500 },
  );
  assert(counts.given > 500 && counts.refused > 500, Deno.inspect(counts));
});
