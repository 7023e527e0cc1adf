// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { explain } from "../../src/errors.ts";
import {
  chooseTemplate,
  fits,
  templateAdvice,
  TemplateRefusal,
} from "../../src/policy/template_choice.ts";
import { parseConfig } from "../../src/settings/read.ts";
import { type Config, DEFAULT_CONFIG } from "../../src/settings/settings.ts";

const CONFIG = parseConfig(
  `
  vcpus: 4
  default_template: fedora
  templates:
    fedora-34:
      aliases: [fedora, "registry.example.com:5000/ci/fedora:34"]
      memory_mib: 8192
    debian-12:
      volume: debian-12-server.img
    Debian 11:
  `,
  "config.yaml",
);

Deno.test("a template of the settings is chosen by its name", () => {
  assert.deepEqual(chooseTemplate(CONFIG, "fedora-34"), {
    name: "fedora-34",
    volumes: ["fedora-34.qcow2", "fedora-34"],
    settings: { ...CONFIG.machine, memoryMib: 8192 },
    isPromised: true,
  });
});

Deno.test("a template of the settings is chosen by an alias, and has its own name", () => {
  assert.deepEqual(chooseTemplate(CONFIG, "fedora"), chooseTemplate(CONFIG, "fedora-34"));
});

Deno.test("an alias may have the slashes and colons of an image", () => {
  const { name } = chooseTemplate(CONFIG, "registry.example.com:5000/ci/fedora:34");
  assert.equal(name, "fedora-34");
});

Deno.test("a template whose settings name a volume is in no other", () => {
  assert.deepEqual(chooseTemplate(CONFIG, "debian-12").volumes, ["debian-12-server.img"]);
});

Deno.test("a template may have a name in the settings that a job could not ask for without", () => {
  assert.equal(chooseTemplate(CONFIG, "Debian 11").name, "Debian 11");
});

Deno.test("a template that the settings do not name has the settings of all", () => {
  assert.deepEqual(chooseTemplate(CONFIG, "alpine-3.19"), {
    name: "alpine-3.19",
    volumes: ["alpine-3.19.qcow2", "alpine-3.19"],
    settings: CONFIG.machine,
    isPromised: false,
  });
});

Deno.test("a template is asked for in the case that it is written in", () => {
  const { name, settings } = chooseTemplate(CONFIG, "Fedora-34");
  assert.equal(name, "Fedora-34");
  assert.equal(settings, CONFIG.machine);
});

Deno.test("a job that asks for none gets the default, which may be an alias", () => {
  assert.equal(chooseTemplate(CONFIG, null).name, "fedora-34");
});

Deno.test("a job that asks for none is at fault where there is no default", () => {
  assert.throws(() => chooseTemplate(DEFAULT_CONFIG, null), {
    name: "BuildFailure",
    message: /asks for no template, and this host has no default/,
    advice: /DISTRO.*default_template/,
  });
});

Deno.test("an empty name is refused, though there is a default", () => {
  assert.throws(() => chooseTemplate(CONFIG, ""), {
    name: "BuildFailure",
    message: /template with an empty name/,
  });
});

for (
  const requested of [
    "a b",
    "a\nb",
    "fedora\n",
    ..."../x /etc/passwd registry/other:1 a'b a\"b a;b `x` $x -x . .. a\0b <name/>".split(" "),
    "fedora/../debian-12",
  ]
) {
  Deno.test(`the template ${JSON.stringify(requested)} is no name, which is the job's fault`, () => {
    assert.throws(() => chooseTemplate(CONFIG, requested), {
      name: "BuildFailure",
      message: /which is not a valid template name \(letters, digits, /,
      advice: "Set image: or the variable DISTRO to a template that this job may have: fedora-34 " +
        "(or fedora, registry.example.com:5000/ci/fedora:34), debian-12, Debian 11, " +
        'any of the storage pool "base_imgs"',
    });
  });
}

Deno.test("a template may be named like what JavaScript's objects have of themselves", () => {
  assert.equal(chooseTemplate(CONFIG, "constructor").settings, CONFIG.machine);
});

for (
  const [requested, template] of [
    ["fedora-34.qcow2", "fedora-34"],
    ["fedora-34.qcow2.qcow2", "fedora-34"],
    ["fedora.qcow2", "fedora-34"],
    ["debian-12-server.img", "debian-12"],
    ["debian-12-server.img.qcow2", "debian-12"],
    ["debian-12.qcow2", "debian-12"],
  ] as const
) {
  Deno.test(`who asks for "${requested}" gets the template with its settings`, () => {
    assert.deepEqual(chooseTemplate(CONFIG, requested), chooseTemplate(CONFIG, template));
  });
}

Deno.test("a volume of the settings is asked for with or without its ending", () => {
  const config = parseConfig("templates: {giant: {volume: giant-v3.qcow2}}", "config.yaml");
  for (const requested of ["giant", "giant-v3", "giant-v3.qcow2", "giant.qcow2"]) {
    assert.equal(chooseTemplate(config, requested).name, "giant");
  }
});

Deno.test("a template that the settings do not name has one name, with .qcow2 or without", () => {
  for (const requested of ["alpine", "alpine.qcow2", "alpine.qcow2.qcow2"]) {
    assert.deepEqual(chooseTemplate(CONFIG, requested), chooseTemplate(CONFIG, "alpine"));
  }
});

for (
  const [pattern, fitting, others] of [
    ["a", ["a"], ["", "aa", "ab", "A"]],
    ["", [""], ["a"]],
    ["*", ["", "a", "a/b\n.*"], []],
    ["**", ["", "a"], []],
    ["a*", ["a", "ab", "a/b"], ["", "ba"]],
    ["*a", ["a", "ba"], ["ab"]],
    ["a*a", ["aa", "aba"], ["a", "ab"]],
    ["a*b*c", ["abc", "a-b-c", "abbcc"], ["ac", "acb", "bc"]],
    ["a**b", ["ab", "axb"], ["a"]],
    ["*ab*ab*", ["abab", "xabxabx"], ["ab", "aab"]],
    ["a.c", ["a.c"], ["abc"]],
    ["[a-z]+(x|y)?$^\\d", ["[a-z]+(x|y)?$^\\d"], ["a", "ax"]],
  ] as const
) {
  Deno.test(`the pattern "${pattern}" fits what it should and nothing else`, () => {
    for (const text of fitting) assert(fits(pattern, text), text);
    for (const text of others) assert(!fits(pattern, text), text);
  });
}

Deno.test("no pattern takes long over a long text", () => {
  const started = performance.now();
  assert(!fits("*a".repeat(500) + "*b", "a".repeat(1_000_000)));
  assert(performance.now() - started < 500);
});

/** The settings with these templates allowed, and a rule for all jobs. */
function configWith(allowed: string, rule = "limits: {vcpus: 9}"): Config {
  return parseConfig(
    `
    default_template: alpine
    allowed_templates: [${allowed}]
    templates: { fedora-34: { aliases: [fedora] }, debian-12: {} }
    rules: [{ ${rule} }]
    `,
    "config.yaml",
  );
}

/** Which of these templates a job may have under the rule of the settings. */
function allowedOf(config: Config, names: readonly string[]): string[] {
  const rule = config.rules[0] ?? null;
  return names.filter((name) => {
    try {
      chooseTemplate(config, name, { rule });
      return true;
    } catch {
      return false;
    }
  });
}

const NAMES = ["fedora", "debian-12", "alpine", "ci-1", "ci-1.qcow2", "other", "a/b", ""];

for (
  const [what, allowed, rule, names] of [
    ["all", '"*"', undefined, ["fedora", "debian-12", "alpine", "ci-1", "ci-1.qcow2", "other"]],
    ["those of a pattern", "ci-*", undefined, [
      "fedora",
      "debian-12",
      "alpine",
      "ci-1",
      "ci-1.qcow2",
    ]],
    ["only named ones and the default", "", undefined, ["fedora", "debian-12", "alpine"]],
    ["those of a rule", '"*"', "templates: [fedora-*, ci-1]", ["fedora", "ci-1", "ci-1.qcow2"]],
    ["no more by a rule than without it", "ci-*", 'templates: ["*e*", other]', [
      "fedora",
      "debian-12",
      "alpine",
    ]],
    ["none, by a rule without templates", '"*"', "templates: []", []],
    ["none by an alias that a rule names", '"*"', "templates: [fedora]", []],
  ] as const
) {
  Deno.test(`a job may ask for ${what}`, () => {
    assert.deepEqual(allowedOf(configWith(allowed, rule), NAMES), names);
  });
}

Deno.test("the operator may have every template, rules or not, if it has a name", () => {
  const config = configWith("", "templates: []");
  const asker = { isOperator: true, rule: config.rules[0] ?? null };
  assert.equal(chooseTemplate(config, "other", asker).name, "other");
  assert.throws(() => chooseTemplate(config, "../x", asker), /is not a valid template name/);
});

const TO_A_TEMPLATE = "Set image: or the variable DISTRO to a template that this job may have: ";

Deno.test("a refusal says what was asked, who refuses it, and what there is", () => {
  assert.throws(() => chooseTemplate(configWith("ci-*"), "other"), {
    name: "BuildFailure",
    message: 'The job asks for the template "other", which is not allowed by this host\'s settings',
    advice: `${TO_A_TEMPLATE}fedora-34 (or fedora), debian-12, alpine, ci-*`,
  });
});

Deno.test("a refusal by a rule names the rule, and only what it allows", () => {
  const config = configWith('ci-*, "*"', "templates: [f*]");
  assert.throws(() => chooseTemplate(config, null, { rule: config.rules[0] ?? null }), {
    name: "BuildFailure",
    message: "The job asks for no template, and the default is not allowed by rule 1 (rules[0]) " +
      "of this host's settings",
    advice: `${TO_A_TEMPLATE}fedora-34 (or fedora), f* that is ci-* too, f*`,
  });
});

Deno.test("a job that may have nothing is told so", () => {
  const config = configWith("", "templates: []");
  assert.throws(() => chooseTemplate(config, "fedora", { rule: config.rules[0] ?? null }), {
    advice: /another runner/,
  });
});

Deno.test("a refusal lists 30 templates at most, and 3 aliases of each", () => {
  const patterns = Array.from({ length: 40 }, (_, i) => `ci-${i}`);
  const config = parseConfig(
    JSON.stringify({ allowed_templates: patterns, templates: { a: { aliases: [..."bcdef"] } } }),
    "config.yaml",
  );
  const advice = /: a \(or b, c, d, …\), ci-0, .*ci-28, and 11 more$/;
  assert.throws(() => chooseTemplate(config, "other"), { advice });
});

for (
  const [what, requested, fault, defaultTemplate] of [
    ["none", null, "template", null],
    ["a default that a rule excludes", null, "request", "secret"],
    ["such a default by an alias", null, "request", "covert"],
    ["no name", "x:1", "template", "secret"],
    ["what is not allowed", "x", "request", "secret"],
  ] as const
) {
  Deno.test(`a refusal names no template that the job may not have: ${what}`, () => {
    const config = parseConfig(
      `
      ${defaultTemplate === null ? "" : `default_template: ${defaultTemplate}`}
      allowed_templates: [ci-*]
      templates:
        fedora-34: { aliases: ["fedora:34"] }
        secret: { aliases: [covert], volume: hidden.img }
        giant: { volume: g3.img }
      rules: [{ templates: [fedora-*, ci-*, giant] }]
      `,
      "config.yaml",
    );
    const volumes = ["g3.img", "hidden.img", "ci-1.qcow2", "other", "fedora-34.qcow2", "ci-1"];
    assert.throws(
      () => chooseTemplate(config, requested, { rule: config.rules[0] ?? null }),
      (refusal) => {
        assert(refusal instanceof TemplateRefusal);
        const told = refusal.withVolumes(volumes);
        assert.deepEqual(
          [told.name, told.message, told.fault],
          ["BuildFailure", refusal.message, fault],
        );
        assert.equal(
          told.advice,
          `${TO_A_TEMPLATE}ci-1, fedora-34 (or fedora:34), giant` +
            (what === "none" ? '; or ask the administrator to set "default_template"' : ""),
        );
        for (const failure of [refusal, told]) {
          assert.doesNotMatch(explain(failure), /secret|covert|hidden|other/);
        }
        return true;
      },
    );
  });
}

Deno.test("only the names are told by which a job gets what is there", () => {
  const config = parseConfig(
    "templates: { moved: { volume: new.img }, a: { aliases: [b] }, Debian 11: {} }",
    "config.yaml",
  );
  const volumes = ["moved.qcow2", "b.qcow2", "Debian 11.qcow2", "-x", "x.qcow2.qcow2", "y"];
  assert.match(templateAdvice(config, {})(volumes), /: Debian 11, y$/);
});

Deno.test("a person is told of --distro, and an operator of all templates", () => {
  const config = configWith("", "templates: []");
  assert.equal(
    templateAdvice(config, { byHand: true })(["alpine.qcow2", "x"]),
    "Name a template with --distro: alpine",
  );
  assert.equal(
    templateAdvice(config, { isOperator: true, rule: config.rules[0] ?? null })(["x", "alpine"]),
    "Name a template that this host has: alpine, x",
  );
});

Deno.test("where there is no template, the command template adds one", () => {
  assert.match(
    templateAdvice(CONFIG, {})([]),
    /gci template add NAME IMAGE .*"base_imgs" has none/,
  );
  assert.match(templateAdvice(configWith(""), {})(["x"]), /^Use another runner/);
});

Deno.test("a job's word is cut in a message, and shows no control characters", () => {
  assert.throws(
    () => chooseTemplate(CONFIG, `\x1b[31m\u202e\u0085${"a".repeat(100)}`),
    (error: Error) => {
      assert.match(error.message, /"\\u001b\[31m\\u202e\\u0085a{53}…"/);
      return true;
    },
  );
});
