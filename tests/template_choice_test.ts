// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { DEFAULT_CONFIG, parseConfig } from "../src/config.ts";
import { chooseTemplate } from "../src/template_choice.ts";

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
    ...["../x", "/etc/passwd", "registry/other:1", "a b", "a'b", 'a"b', "a\nb", "fedora\n", "a;b"],
    ...["`x`", "$x", "-x", ".", "..", "a\0b", "<name/>", "fedora/../debian-12"],
  ]
) {
  Deno.test(`the template ${JSON.stringify(requested)} is no name, which is the job's fault`, () => {
    assert.throws(() => chooseTemplate(CONFIG, requested), {
      name: "BuildFailure",
      message: /which is no template's name/,
      advice: /Set the variable DISTRO/,
    });
  });
}

Deno.test("a template may be named like what JavaScript's objects have of themselves", () => {
  assert.equal(chooseTemplate(CONFIG, "constructor").settings, CONFIG.machine);
});
