// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { DEFAULT_CONFIG, loadConfig, parseConfig } from "../src/config.ts";
import { SystemFailure } from "../src/errors.ts";

const EXAMPLE = new URL("../config.example.yaml", import.meta.url);

/** The mistakes that parseConfig() reports, a line each. */
function mistakesIn(yaml: string): string[] {
  try {
    parseConfig(yaml, "config.yaml");
  } catch (error) {
    assert(error instanceof SystemFailure, String(error));
    const [heading, ...mistakes] = error.message.split("\n");
    assert.equal(heading, `The settings have ${mistakes.length === 1 ? "a mistake" : "mistakes"}:`);
    return mistakes;
  }
  return [];
}

/** The keys that the schema knows where `nonsense` stands, by its own message. */
function knownKeys(yaml: string): string[] {
  const [mistake] = mistakesIn(yaml);
  const known = mistake?.match(/"[\w.]*nonsense" is unknown; known here: (.*)$/)?.[1];
  assert(known, mistake);
  return known.split(", ");
}

/** The example, with the settings that its comments show switched on. */
function uncommented(example: string): string {
  return example.replace(/^#(?=\w| {2,}\S)/gm, "");
}

// A list of the keys and the values that are no default of any.
const EVERY_MACHINE_SETTING = {
  domain_type: "qemu",
  network: "isolated",
  vcpus: 3,
  memory_mib: 512,
  disk_gib: 9,
  machine_type: "pc",
  firmware: "efi",
  cpu_mode: "host-model",
  cloud_init: false,
  user: "builder",
  port: 2222,
  key: "~/.ssh/key",
  shell: "sh",
  builds_dir: "/srv/builds",
  cache_dir: "/srv/cache",
  address_seconds: 5,
  ssh_seconds: 6,
};

const EVERY_MACHINE_VALUE = {
  domainType: "qemu",
  network: "isolated",
  vcpus: 3,
  memoryMib: 512,
  diskGib: 9,
  machineType: "pc",
  firmware: "efi",
  cpuMode: "host-model",
  cloudInit: false,
  user: "builder",
  port: 2222,
  key: "~/.ssh/key",
  shell: "sh",
  buildsDir: "/srv/builds",
  cacheDir: "/srv/cache",
  addressSeconds: 5,
  sshSeconds: 6,
};

Deno.test("one pool for templates and for the machines' disks is a mistake", () => {
  assert.throws(
    () => parseConfig("template_pool: one\noverlay_pool: one\n", "c.yaml"),
    /c\.yaml:2:15: "overlay_pool" must be another pool than "template_pool"/,
  );
});

Deno.test("the defaults are those that the manual names", () => {
  const { machine, ...others } = DEFAULT_CONFIG;
  assert.deepEqual(others, {
    uri: "qemu:///system",
    callSeconds: 60,
    templatePool: "base_imgs",
    overlayPool: "libvirt-gci",
    defaultTemplate: null,
    templates: new Map(),
  });
  assert.equal(machine.domainType, "auto");
  assert.equal(machine.user, "gitlab-runner");
});

for (
  const [what, yaml] of [
    ["an empty file", ""],
    ["a file of comments only", "# vcpus: 4\n"],
    ["a file with an empty document", "---\n# nothing\n"],
    ["a file that says null", "~\n"],
    ["templates without any", "templates: {}\n"],
  ] as const
) {
  Deno.test(`${what} leaves all settings at their defaults`, () => {
    assert.deepEqual(parseConfig(yaml, "config.yaml"), DEFAULT_CONFIG);
  });
}

Deno.test("every setting of the host can be set", () => {
  const config = parseConfig(
    `
    uri: qemu+ssh://build@host/system
    call_seconds: 7
    template_pool: templates
    overlay_pool: overlays
    default_template: fedora-34
    `,
    "config.yaml",
  );
  assert.deepEqual(config, {
    ...DEFAULT_CONFIG,
    uri: "qemu+ssh://build@host/system",
    callSeconds: 7,
    templatePool: "templates",
    overlayPool: "overlays",
    defaultTemplate: "fedora-34",
  });
});

Deno.test("every setting of the machine can be set for all templates", () => {
  const config = parseConfig(JSON.stringify(EVERY_MACHINE_SETTING), "config.yaml");
  assert.deepEqual(config, { ...DEFAULT_CONFIG, machine: EVERY_MACHINE_VALUE });
});

Deno.test("every setting of the machine can be set for one template", () => {
  const yaml = JSON.stringify({ templates: { fedora: EVERY_MACHINE_SETTING } });
  const config = parseConfig(yaml, "config.yaml");
  assert.deepEqual(config.machine, DEFAULT_CONFIG.machine);
  assert.deepEqual(config.templates.get("fedora")?.machine, EVERY_MACHINE_VALUE);
});

Deno.test("a template inherits from the top level what it does not set itself", () => {
  const { machine, templates } = parseConfig(
    `
    templates:
      fedora: { vcpus: 8, cloud_init: true }
    vcpus: 4
    memory_mib: 1024
    cloud_init: false
    `,
    "config.yaml",
  );
  assert.deepEqual(
    machine,
    { ...DEFAULT_CONFIG.machine, vcpus: 4, memoryMib: 1024, cloudInit: false },
  );
  assert.deepEqual(templates.get("fedora")?.machine, { ...machine, vcpus: 8, cloudInit: true });
});

Deno.test("a template may have a volume and aliases, and none by default", () => {
  const { templates } = parseConfig(
    `
    templates:
      fedora: { volume: f34.img, aliases: [f34, "registry/fedora:34"] }
      debian: {}
    `,
    "config.yaml",
  );
  assert.deepEqual([...templates].map(([name, { volume, aliases }]) => [name, volume, aliases]), [
    ["fedora", "f34.img", ["f34", "registry/fedora:34"]],
    ["debian", null, []],
  ]);
});

Deno.test("a template whose entry is empty has the settings of the top level", () => {
  const { templates, machine } = parseConfig("vcpus: 4\ntemplates:\n  fedora:\n", "config.yaml");
  assert.deepEqual(templates.get("fedora"), { volume: null, aliases: [], machine });
});

Deno.test("a template may be named by a number", () => {
  const { templates } = parseConfig("templates: {34: {vcpus: 3}}", "config.yaml");
  assert.equal(templates.get("34")?.machine.vcpus, 3);
});

Deno.test("a byte order mark and Windows line ends are no mistakes", () => {
  assert.equal(parseConfig("\ufeffvcpus: 3\r\nport: 23\r\n", "config.yaml").machine.port, 23);
});

Deno.test("all mistakes are reported at once, each with its file, line and column", () => {
  assert.deepEqual(
    mistakesIn(
      [
        "memory_mib: 2 GiB",
        "vcpus: 0",
        "shell: zsh",
        "templates:",
        "  fedora:",
        "    port: 99999",
        "    aliases: fedora",
        "  debian: 12",
        "builds_dir: builds",
      ].join("\n"),
    ),
    [
      'config.yaml:1:13: "memory_mib" must be a whole number from 64 to 16777216, not "2 GiB"',
      'config.yaml:2:8: "vcpus" must be a whole number from 1 to 1024, not 0',
      'config.yaml:3:8: "shell" must be one of bash, sh, not "zsh"',
      'config.yaml:6:11: "templates.fedora.port" must be a whole number from 1 to 65535, not 99999',
      'config.yaml:7:14: "templates.fedora.aliases" must be a list of names, not "fedora"',
      'config.yaml:8:11: "templates.debian" must be keys with values, not 12',
      'config.yaml:9:13: "builds_dir" must be an absolute path, not "builds"',
    ],
  );
});

Deno.test("every unknown key is a mistake, at the top level and under a template", () => {
  const mistakes = mistakesIn(
    "qqq: 1\nvolume: x\ntemplates:\n  fedora:\n    uri: x\n    call_seconds: 1\nwww: 2\n",
  );
  assert.deepEqual(mistakes.map((mistake) => mistake.replace(/; .*/, "")), [
    'config.yaml:1:1: "qqq" is unknown',
    'config.yaml:2:1: "volume" is unknown',
    'config.yaml:5:5: "templates.fedora.uri" is unknown',
    'config.yaml:6:5: "templates.fedora.call_seconds" is unknown',
    'config.yaml:7:1: "www" is unknown',
  ]);
});

Deno.test("an unknown key that resembles none comes with those that are known there", () => {
  assert.match(mistakesIn("size: 3")[0] ?? "", /known here: uri, call_seconds, .*, templates$/);
  assert.match(
    mistakesIn("templates: {fedora: {size: 3}}")[0] ?? "",
    /known here: volume, aliases, domain_type, .*, ssh_seconds$/,
  );
});

for (
  const [misspelt, meant] of [
    ["vcpu", "vcpus"],
    ["memory", "memory_mib"],
    ["memoryMib", "memory_mib"],
    ["builds-dir", "builds_dir"],
    ["adress_seconds", "address_seconds"],
    ["url", "uri"],
    ["use", "user"],
    ["template", "templates"],
  ] as const
) {
  Deno.test(`the key "${misspelt}" is taken for a misspelt "${meant}"`, () => {
    assert.deepEqual(mistakesIn(`${misspelt}: 1`), [
      `config.yaml:1:1: "${misspelt}" is unknown; did you mean "${meant}"?`,
    ]);
  });
}

Deno.test("a key that objects of JavaScript have by themselves is a mistake", () => {
  const keys = ["__proto__", "constructor", "prototype", "toString", "hasOwnProperty"];
  assert.equal(mistakesIn(keys.map((key) => `${key}: 1\n`).join("")).length, keys.length);
});

Deno.test("a template cannot have the name of a key that would be lost", () => {
  assert.deepEqual(mistakesIn("templates:\n  prototype: {vcpus: 3}"), [
    'config.yaml:2:3: "prototype" cannot be a key',
  ]);
});

Deno.test("a key that stands twice is a mistake, beside all others", () => {
  assert.deepEqual(mistakesIn("vcpus: 2\nport: 0\nvcpus: x\n"), [
    'config.yaml:2:7: "port" must be a whole number from 1 to 65535, not 0',
    'config.yaml:3:1: "vcpus" stands here again',
    'config.yaml:3:8: "vcpus" must be a whole number from 1 to 1024, not "x"',
  ]);
});

Deno.test("a template that stands twice is a mistake, though YAML takes 34 and '34' for two", () => {
  assert.deepEqual(mistakesIn("templates:\n  34:\n  '34': {vcpus: 3}\n  fedora:\n  fedora:\n"), [
    'config.yaml:3:3: "34" stands here again',
    'config.yaml:5:3: "fedora" stands here again',
  ]);
});

for (
  const [what, yaml, place, words] of [
    ["a bracket that never closes", "port: 22\nvcpus: [", "2:9", /end with a \]/],
    ["a tab as indentation", "templates:\n\tfedora:\n", "2:1", /Tabs are not allowed/],
    ["two documents", "vcpus: 2\n---\nvcpus: 3\n", "2:1", /multiple documents/],
    ["an alias of YAML without its anchor", "vcpus: *many", "1:8", /anchor "&many"/],
    ["a tag", "vcpus: !!python/int 3", "1:8", /Unresolved tag/],
  ] as const
) {
  Deno.test(`${what} is a mistake of the file's syntax, with its place`, () => {
    const [mistake] = mistakesIn(yaml);
    assert.equal(mistake?.startsWith(`config.yaml:${place}: `), true, mistake);
    assert.match(mistake ?? "", words);
  });
}

for (
  const [what, yaml, mistake] of [
    ["a list instead of keys", "- vcpus: 2\n", '"the file" must be keys with values, not a list'],
    ["an empty list", "[]", '"the file" must be keys with values, not a list'],
    ["plain words", "vcpus", '"the file" must be keys with values, not "vcpus"'],
  ] as const
) {
  Deno.test(`${what} is one mistake, of the file`, () => {
    assert.deepEqual(mistakesIn(yaml), [`config.yaml:1:1: ${mistake}`]);
  });
}

Deno.test("a list of templates is a mistake, even with settings in it", () => {
  assert.deepEqual(mistakesIn("templates:\n  - vcpus: 3\n"), [
    'config.yaml:2:3: "templates" must be the names of templates, each with settings below it, ' +
    "not a list",
  ]);
});

Deno.test("a key without a value is a mistake, and the message says so", () => {
  assert.deepEqual(mistakesIn("port: 22\ndisk_gib:\n"), [
    'config.yaml:2:10: "disk_gib" must be a whole number from 1 to 65536, not nothing',
  ]);
});

Deno.test("a template's name with a slash is a mistake at the name", () => {
  assert.deepEqual(mistakesIn("templates:\n  a/b: {vcpus: 3}\n"), [
    'config.yaml:2:3: "templates.a/b" must be a name without slashes or control characters, ' +
    'not "a/b"',
  ]);
});

Deno.test("a mistake below a numeric name, or in what YAML repeats, has its place too", () => {
  assert.match(mistakesIn("templates:\n  34: {vcpus: x}")[0] ?? "", /^config.yaml:2:15: /);
  assert.deepEqual(
    mistakesIn("templates:\n  a: &same {vcpus: x}\n  b: *same\n").map((line) =>
      line.slice(0, "config.yaml:2:20: ".length)
    ),
    ["config.yaml:2:20: ", "config.yaml:2:20: "],
  );
});

const WRONG: Readonly<Record<string, readonly unknown[]>> = {
  uri: ["", "qemu", "qemu:/// system", 3],
  call_seconds: [0, -1, 1.5, 86_401, "60", null, true],
  template_pool: ["", "a/b", " a", "a\nb", 7],
  overlay_pool: ["", "a/b", ["a"]],
  default_template: ["", "a\u0000b", 12],
  domain_type: ["lxc", "KVM", true],
  network: ["", "a/b", {}],
  vcpus: [0, 1025, "2", [2], { a: 2 }],
  memory_mib: [63, 16_777_217, "2G"],
  disk_gib: [0, 65_537, null],
  machine_type: ["", "q 35", "q35\n", 35],
  firmware: ["uefi", "", null],
  cpu_mode: ["custom", "host"],
  cloud_init: ["yes", 1, "true", null],
  user: ["", "Root", "a b", "-a", "a;b", "a".repeat(33), 0],
  port: [0, 65_536, "22"],
  key: ["", "id_ed25519", "./key", "~", "~/", "/", "/a\nb"],
  shell: ["zsh", "/bin/sh", "pwsh"],
  builds_dir: ["", "builds", "~/builds", "/a\nb"],
  cache_dir: ["cache", 1],
  address_seconds: [0, "1m"],
  ssh_seconds: [0, 1e9],
  templates: [[], "fedora", 3, null],
};

Deno.test("each setting refuses a wrong type and what is out of its range, by its name", () => {
  for (const [key, values] of Object.entries(WRONG)) {
    for (const value of values) {
      const mistakes = mistakesIn(JSON.stringify({ [key]: value }));
      assert.equal(mistakes.length, 1, `${key}: ${JSON.stringify(value)}: ${mistakes}`);
      assert(mistakes[0]?.includes(`"${key}" must be `), mistakes[0]);
    }
  }
});

Deno.test("the wrong values above cover every setting", () => {
  assert.deepEqual(Object.keys(WRONG).sort(), knownKeys("nonsense: 1").sort());
});

Deno.test("a setting takes the ends of its range", () => {
  for (const yaml of ["vcpus: 1", "vcpus: 1024", "memory_mib: 64", "port: 65535"]) {
    assert.deepEqual(mistakesIn(yaml), []);
  }
});

Deno.test("an alias that is the name of another template is a mistake, at the alias", () => {
  assert.deepEqual(mistakesIn("templates:\n  a: {aliases: [x, b]}\n  b:\n"), [
    'config.yaml:2:20: "templates.a.aliases.1" must be a new name: "b" is the template "b"',
  ]);
});

Deno.test("two templates with the same alias are a mistake, beside all others", () => {
  assert.deepEqual(
    mistakesIn("vcpus: 0\ntemplates:\n  a: {aliases: [x]}\n  b: {aliases: [x, 3]}\n"),
    [
      'config.yaml:1:8: "vcpus" must be a whole number from 1 to 1024, not 0',
      'config.yaml:4:17: "templates.b.aliases.0" must be a new name: "x" is the template "a"',
      'config.yaml:4:20: "templates.b.aliases.1" must be a name, not 3',
    ],
  );
});

Deno.test("the mistakes come with the advice to edit the file", () => {
  assert.throws(() => parseConfig("vcpus: 0", "/etc/x.yaml"), {
    name: "SystemFailure",
    advice: /Edit "\/etc\/x.yaml"; config.example.yaml has every setting/,
  });
});

Deno.test("the example as it stands is valid, and its values are the defaults", async () => {
  assert.deepEqual(parseConfig(await Deno.readTextFile(EXAMPLE), "example"), DEFAULT_CONFIG);
});

Deno.test("the example names every setting, once", async () => {
  const example = uncommented(await Deno.readTextFile(EXAMPLE));
  const keys = [...example.matchAll(/^(\w+):/gm)].map(([, key]) => key);
  assert.deepEqual(keys, knownKeys("nonsense: 1"));
});

Deno.test("the example names every setting of a template", async () => {
  const example = uncommented(await Deno.readTextFile(EXAMPLE));
  const keys = [...example.matchAll(/^ {4}(\w+):/gm)].map(([, key]) => key);
  const known = knownKeys("templates: {fedora: {nonsense: 1}}");
  assert.deepEqual(keys.slice(0, known.length), known);
});

Deno.test("the example is valid with all that its comments show switched on", async () => {
  const config = parseConfig(uncommented(await Deno.readTextFile(EXAMPLE)), "example");
  assert.equal(config.machine.diskGib, 40);
  assert.equal(config.templates.get("fedora-34")?.machine.diskGib, 80);
});

Deno.test("what the example leaves out has null for its default", async () => {
  const example = await Deno.readTextFile(EXAMPLE);
  const nulls = Object.values({ ...DEFAULT_CONFIG, ...DEFAULT_CONFIG.machine }).filter((value) =>
    value === null
  );
  const commented = example.match(/^#\w+:/gm)?.filter((line) => line !== "#templates:");
  assert.equal(commented?.length, nulls.length);
});

/** Runs with a directory that is gone afterwards. */
async function withDirectory(use: (directory: string) => Promise<void>): Promise<void> {
  const directory = await Deno.makeTempDir();
  try {
    await use(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("loadConfig() reads the file of --config and no other", async () => {
  await withDirectory(async (directory) => {
    const file = `${directory}/mine.yaml`;
    await Deno.writeTextFile(file, "vcpus: 5\n");
    await Deno.mkdir(`${directory}/libvirt-gci`);
    await Deno.writeTextFile(`${directory}/libvirt-gci/config.yaml`, "nonsense");
    const config = await loadConfig({ file, home: directory, xdgConfigHome: directory });
    assert.equal(config.machine.vcpus, 5);
  });
});

Deno.test("loadConfig() refuses a file of --config that does not exist", async () => {
  await withDirectory(async (home) => {
    const file = `${home}/none.yaml`;
    await assert.rejects(loadConfig({ file, home, xdgConfigHome: undefined }), {
      name: "SystemFailure",
      message: `Cannot read the settings in "${file}"`,
      advice: /exists and that this user may read it/,
    });
  });
});

Deno.test("loadConfig() reports the mistakes with the path of the file", async () => {
  await withDirectory(async (home) => {
    const file = `${home}/bad.yaml`;
    await Deno.writeTextFile(file, "\nvcpus: 0\n");
    await assert.rejects(loadConfig({ file, home, xdgConfigHome: undefined }), {
      name: "SystemFailure",
      message: /\/bad\.yaml:2:8: "vcpus" must be/,
    });
  });
});

// A file of this host would come first.
const ignore = await Deno.stat("/etc/libvirt-gci").then(() => true, () => false);

for (
  const [what, below, variables] of [
    ["XDG_CONFIG_HOME", "xdg", (home: string) => ({ xdgConfigHome: `${home}/xdg` })],
    ["~/.config without XDG_CONFIG_HOME", ".config", () => ({ xdgConfigHome: undefined })],
    ["~/.config if XDG_CONFIG_HOME is empty", ".config", () => ({ xdgConfigHome: "" })],
  ] as const
) {
  Deno.test({
    name: `loadConfig() looks in ${what}`,
    ignore,
    fn: () =>
      withDirectory(async (home) => {
        await Deno.mkdir(`${home}/${below}/libvirt-gci`, { recursive: true });
        await Deno.writeTextFile(`${home}/${below}/libvirt-gci/config.yaml`, "vcpus: 6\n");
        assert.equal((await loadConfig({ home, ...variables(home) })).machine.vcpus, 6);
      }),
  });
}

Deno.test({
  name: "loadConfig() gives the defaults where there is no file, and no home",
  ignore,
  fn: async () => {
    for (const home of [undefined, "", "/dev/null", "/nonexistent"]) {
      assert.equal(await loadConfig({ home, xdgConfigHome: undefined }), DEFAULT_CONFIG);
    }
  },
});

Deno.test({
  name: "loadConfig() refuses a file that is there and cannot be read",
  ignore,
  fn: () =>
    withDirectory(async (home) => {
      await Deno.mkdir(`${home}/.config/libvirt-gci/config.yaml`, { recursive: true });
      await assert.rejects(loadConfig({ home, xdgConfigHome: undefined }), {
        name: "SystemFailure",
        message: /^Cannot read the settings in ".*config\.yaml"$/,
      });
    }),
});
