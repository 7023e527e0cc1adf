// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import { SystemFailure } from "../../src/errors.ts";
import { FILE, RULE } from "../../src/settings/file_table.ts";
import { HOST } from "../../src/settings/host_table.ts";
import { loadConfig } from "../../src/settings/load.ts";
import { MACHINE } from "../../src/settings/machine_table.ts";
import { parseConfig } from "../../src/settings/read.ts";
import { settingsIn } from "../../src/settings/setting.ts";
import { DEFAULT_CONFIG } from "../../src/settings/settings.ts";
import { merged } from "../fakes/merged.ts";
import { withDirectory } from "../fakes/with_directory.ts";

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

/** Each setting of a machine with a value that is no default of any. */
const EVERY_MACHINE_SETTING = {
  domain_type: "qemu",
  vcpus: 3,
  memory_mib: 512,
  disk_gib: 9,
  nested: true,
  keep_minutes: 30,
  limits: { vcpus: 4, memory_mib: 1024, disk_gib: 10, keep_minutes: 60, nested: true },
  machine_type: "pc",
  firmware: "efi",
  start: "warm",
  standby: 2,
  cpu: { mode: "host-model", shares: 512 },
  disk: { mib_per_second: 100, iops: 1000 },
  network: {
    name: "isolated",
    isolate: false,
    host_ports: ["tcp/80", "udp/65535"],
    host_addresses: ["192.0.2.7/24", "10.0.0.1", "10.1.0.0/31"],
    blocked: ["10.0.0.0/8", "192.0.2.7/32"],
    mib_per_second: 50,
  },
  ssh: { login: "systemd", user: "builder", port: 2222, key: "~/.ssh/key" },
  guest: { shell: "sh", builds_dir: "/srv/builds", cache_dir: "/srv/cache" },
  timeouts: { address_seconds: 5, ssh_seconds: 6 },
};

/** Each value of an object and of those in it, by its path. */
function flat(values: object, path: readonly string[] = []): [string, unknown][] {
  return Object.entries(values).flatMap(([key, value]) =>
    typeof value === "object" && value !== null && !Array.isArray(value)
      ? flat(value, [...path, key])
      : [[[...path, key].join("."), value]]
  );
}

/** The same, with the keys as TypeScript has them. */
function inTypeScript(values: object): [string, unknown][] {
  return flat(values).map(([key, value]) => [
    key.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase()),
    value,
  ]);
}

Deno.test("one pool for templates and for the machines' disks is a mistake", () => {
  assert.throws(
    () => parseConfig("pools:\n  templates: one\n  overlays: one\n", "c.yaml"),
    /c\.yaml:3:13: "pools\.overlays" must be another pool than "pools\.templates"/,
  );
});

Deno.test("the defaults are those that the manual names", () => {
  const { machine, ...others } = DEFAULT_CONFIG;
  assert.deepEqual(others, {
    file: null,
    libvirt: { uri: "qemu:///system", callSeconds: 60 },
    pools: { templates: "base_imgs", overlays: "libvirt-gci" },
    defaultTemplate: null,
    allowedTemplates: ["*"],
    metricsFile: null,
    host: {
      maxMachines: null,
      maxKeptMachines: 4,
      overcommitMemory: false,
      reserveMemoryMib: 512,
      reserveDiskGib: 1,
      queueSeconds: 1800,
    },
    postMortem: { dir: null, count: 20, totalMib: 100 },
    templates: new Map(),
    rules: [],
  });
  assert.equal(machine.domainType, "kvm");
  assert.equal(machine.ssh.user, "gitlab-runner");
});

for (
  const [what, yaml] of [
    ["an empty file", ""],
    ["a file of comments only", "# vcpus: 4\n"],
    ["a file with an empty document", "---\n# nothing\n"],
    ["a file that says null", "~\n"],
    ["templates without any", "templates: {}\n"],
    ["rules without any", "rules: []\n"],
    ["a group whose settings are commented out", "ssh:\n#  port: 23\n"],
  ] as const
) {
  Deno.test(`${what} leaves all settings at their defaults`, () => {
    assert.deepEqual(parseConfig(yaml, "config.yaml"), { ...DEFAULT_CONFIG, file: "config.yaml" });
  });
}

Deno.test("every setting of the host can be set", () => {
  const settings = {
    libvirt: { uri: "qemu+ssh://build@host/system", call_seconds: 7 },
    pools: { templates: "templates", overlays: "overlays" },
    default_template: "fedora-34",
    allowed_templates: ["ci-*", "debian-12"],
    metrics_file: "/var/lib/metrics/gci.prom",
    host: {
      max_machines: 5,
      max_kept_machines: 6,
      overcommit_memory: true,
      reserve_memory_mib: 0,
      reserve_disk_gib: 20,
      queue_seconds: 0,
    },
    post_mortem: { dir: "/srv/post-mortem", count: 0, total_mib: 1 },
  };
  assert.deepEqual(flat(settings).map(([key]) => key), settingsIn(HOST).map(([key]) => key));
  const { machine, templates, rules, file, ...host } = parseConfig(JSON.stringify(settings), "x");
  assert.deepEqual(flat(host), inTypeScript(settings));
  const others = { machine, templates, rules };
  const { machine: usual } = DEFAULT_CONFIG;
  assert.deepEqual({ ...others, file }, {
    machine: usual,
    templates: new Map(),
    rules: [],
    file: "x",
  });
});

Deno.test("every setting of the machine can be set for all templates", () => {
  const keys = settingsIn(MACHINE).map(([key]) => key);
  assert.deepEqual(flat(EVERY_MACHINE_SETTING).map(([key]) => key), keys);
  const config = parseConfig(JSON.stringify(EVERY_MACHINE_SETTING), "config.yaml");
  assert.deepEqual(flat(config.machine), inTypeScript(EVERY_MACHINE_SETTING));
  const { machine } = config;
  assert.deepEqual(config, { ...DEFAULT_CONFIG, file: "config.yaml", machine });
});

Deno.test("every setting of the machine can be set for one template", () => {
  const yaml = JSON.stringify({ templates: { fedora: EVERY_MACHINE_SETTING } });
  const config = parseConfig(yaml, "config.yaml");
  assert.deepEqual(config.machine, DEFAULT_CONFIG.machine);
  const fedora = config.templates.get("fedora");
  assert.deepEqual(flat(fedora?.machine ?? {}), inTypeScript(EVERY_MACHINE_SETTING));
  assert.deepEqual([...fedora?.ownKeys ?? []], settingsIn(MACHINE).map(([key]) => key));
});

Deno.test("a template inherits from the top level what it does not set itself", () => {
  const { machine, templates } = parseConfig(
    `
    templates:
      fedora: { vcpus: 8, network: { isolate: true, host_ports: [udp/53] } }
    vcpus: 4
    memory_mib: 1024
    network: { name: ci, isolate: false, host_ports: [tcp/80] }
    `,
    "config.yaml",
  );
  const network = { name: "ci", isolate: false, hostPorts: ["tcp/80"] };
  assert.deepEqual(machine, merged(DEFAULT_CONFIG.machine, { vcpus: 4, memoryMib: 1024, network }));
  const own = { vcpus: 8, network: { isolate: true, hostPorts: ["udp/53"] } };
  assert.deepEqual(templates.get("fedora")?.machine, merged(machine, own));
  assert.deepEqual(
    [...templates.get("fedora")?.ownKeys ?? []],
    ["vcpus", "network.isolate", "network.host_ports"],
  );
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
  assert.deepEqual(templates.get("fedora"), {
    volume: null,
    aliases: [],
    machine,
    ownKeys: new Set(),
  });
});

Deno.test("a template may be named by a number", () => {
  const { templates } = parseConfig("templates: {34: {vcpus: 3}}", "config.yaml");
  assert.equal(templates.get("34")?.machine.vcpus, 3);
});

Deno.test("a byte order mark and Windows line ends are no mistakes", () => {
  assert.equal(
    parseConfig("\ufeffvcpus: 3\r\nssh:\r\n  port: 23\r\n", "config.yaml").machine.ssh.port,
    23,
  );
});

Deno.test("all mistakes are reported at once, each with its file, line and column", () => {
  assert.deepEqual(
    mistakesIn(
      [
        "memory_mib: 2 GiB",
        "vcpus: 0",
        "guest: {shell: zsh}",
        "templates:",
        "  fedora:",
        "    ssh: {port: 99999}",
        "    aliases: fedora",
        "  debian: 12",
        "disk: 3",
      ].join("\n"),
    ),
    [
      'config.yaml:1:13: "memory_mib" must be a whole number from 64 to 16777216, not "2 GiB"',
      'config.yaml:2:8: "vcpus" must be a whole number from 1 to 1024, not 0',
      'config.yaml:3:16: "guest.shell" must be one of bash, sh, not "zsh"',
      'config.yaml:6:17: "templates.fedora.ssh.port" must be a whole number from 1 to 65535, not 99999',
      'config.yaml:7:14: "templates.fedora.aliases" must be a list of names, not "fedora"',
      'config.yaml:8:11: "templates.debian" must be keys with values, not 12',
      'config.yaml:9:7: "disk" must be keys with values (mib_per_second, iops), not 3',
    ],
  );
});

Deno.test("every unknown key is a mistake, at the top level and under a template", () => {
  const mistakes = mistakesIn(
    "qqq: 1\nvolume: x\ntemplates:\n  fedora:\n    qqq: x\n    ssh: {qqq: 1}\nwww: 2\n",
  );
  assert.deepEqual(mistakes.map((mistake) => mistake.replace(/; .*/, "")), [
    'config.yaml:1:1: "qqq" is unknown',
    'config.yaml:2:1: "volume" is unknown',
    'config.yaml:5:5: "templates.fedora.qqq" is unknown',
    'config.yaml:6:11: "templates.fedora.ssh.qqq" is unknown',
    'config.yaml:7:1: "www" is unknown',
  ]);
});

Deno.test("an unknown key that resembles none comes with those that are known there", () => {
  assert.match(
    mistakesIn("size: 3")[0] ?? "",
    /known here: libvirt, pools, .*, templates, rules$/,
  );
  assert.match(
    mistakesIn("templates: {fedora: {size: 3}}")[0] ?? "",
    /known here: volume, aliases, domain_type, .*, timeouts$/,
  );
  assert.match(mistakesIn("ssh: {size: 3}")[0] ?? "", /known here: login, user, port, key$/);
});

for (
  const [misspelt, meant] of [
    ["vcpu", "vcpus"],
    ["memory", "memory_mib"],
    ["memoryMib", "memory_mib"],
    ["template", "templates"],
    ["limit", "limits"],
    ["url", "libvirt.uri"],
    ["use", "ssh.user"],
    ["port", "ssh.port"],
    ["ssh_port", "ssh.port"],
    ["builds-dir", "guest.builds_dir"],
    ["adress_seconds", "timeouts.address_seconds"],
    ["max_vcpus", "limits.vcpus"],
    ["allow_nested", "limits.nested"],
    ["overlay_pool", "pools.overlays"],
    ["max_machines", "host.max_machines"],
    ["post_mortems", "post_mortem.count"],
    ["disk_iops", "disk.iops"],
    ["isolate", "network.isolate"],
  ] as const
) {
  Deno.test(`the key "${misspelt}" is taken for a misspelt "${meant}"`, () => {
    assert.deepEqual(mistakesIn(`${misspelt}: 1`), [
      `config.yaml:1:1: "${misspelt}" is unknown; did you mean "${meant}"?`,
    ]);
  });
}

Deno.test("a key in the wrong group, or misspelt in the right one, comes with its place", () => {
  assert.deepEqual(
    mistakesIn("limits: {vcpu: 1, port: 2}\ntemplates: {a: {ssh: {prot: 3}}}\n"),
    [
      'config.yaml:1:10: "limits.vcpu" is unknown; did you mean "limits.vcpus"?',
      'config.yaml:1:19: "limits.port" is unknown; did you mean "ssh.port"?',
      'config.yaml:2:23: "templates.a.ssh.prot" is unknown; did you mean "ssh.port"?',
    ],
  );
});

Deno.test("a setting of the host in a template or a rule is a mistake that says so", () => {
  assert.deepEqual(
    mistakesIn("templates:\n  a:\n    pools: {overlays: b}\nrules: [{host: {}}]\n"),
    [
      'config.yaml:3:5: "templates.a.pools" applies to the whole host only: set it at the top',
      'config.yaml:4:10: "rules.0.host" applies to the whole host only: set it at the top',
    ],
  );
});

Deno.test("a key that objects of JavaScript have by themselves is a mistake", () => {
  const keys = ["__proto__", "constructor", "prototype", "toString", "hasOwnProperty"];
  assert.equal(mistakesIn(keys.map((key) => `${key}: 1\n`).join("")).length, keys.length);
});

Deno.test("a template may have the name of what objects of JavaScript have by themselves", () => {
  for (const name of ["__proto__", "constructor", "prototype", "toString"]) {
    const { templates } = parseConfig(`templates: {${name}: {vcpus: 3}}`, "config.yaml");
    assert.deepEqual([...templates].map(([name, { machine }]) => [name, machine.vcpus]), [
      [name, 3],
    ]);
  }
});

Deno.test("a key that stands twice is a mistake, beside all others", () => {
  assert.deepEqual(mistakesIn("vcpus: 2\nstandby: x\nvcpus: x\n"), [
    'config.yaml:2:10: "standby" must be a whole number from 0 to 100, not "x"',
    'config.yaml:3:1: "vcpus" is set twice',
    'config.yaml:3:8: "vcpus" must be a whole number from 1 to 1024, not "x"',
  ]);
});

Deno.test("a template that stands twice is a mistake, though YAML takes 34 and '34' for two", () => {
  assert.deepEqual(mistakesIn("templates:\n  34:\n  '34': {vcpus: 3}\n  fedora:\n  fedora:\n"), [
    'config.yaml:3:3: "34" is set twice',
    'config.yaml:5:3: "fedora" is set twice',
  ]);
});

for (
  const [what, yaml, place, words] of [
    ["a bracket that never closes", "standby: 2\nvcpus: [", "2:9", /end with a \]/],
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
  assert.deepEqual(mistakesIn("vcpus: 2\ndisk_gib:\n"), [
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

/** The value below this key, such as `ssh.port`, and below its group. */
function nested(key: string, value: unknown): object {
  return key.split(".").reduceRight<unknown>((below, step) => ({ [step]: below }), value) as object;
}

const WRONG: Readonly<Record<string, readonly unknown[]>> = {
  "libvirt.uri": ["", "qemu", "qemu:/// system", 3],
  "libvirt.call_seconds": [0, -1, 1.5, 86_401, "60", null, true],
  "post_mortem.dir": ["", "relative", "~/here", "/a\nb", null],
  "post_mortem.count": [-1, 10_001, "20"],
  "post_mortem.total_mib": [0, 1.5, "100M"],
  "host.max_machines": [0, 10_001, null, "5"],
  "host.overcommit_memory": ["yes", 1, null],
  "host.reserve_memory_mib": [-1, 0.5, 16_777_217],
  "host.reserve_disk_gib": [-1, 65_537, "1"],
  "host.queue_seconds": [-1, 86_401],
  "pools.templates": ["", "a/b", " a", "a\nb", 7],
  "pools.overlays": ["", "a/b", ["a"]],
  metrics_file: ["", "gci.prom", "/gci", "/.prom", "/a/.prom", "/a\n.prom", "/a.prom/", true],
  default_template: ["", "a\u0000b", 12],
  allowed_templates: ["*", [""], ["a\nb"], [12], null],
  domain_type: ["auto", "lxc", "KVM", true],
  "network.name": ["", "a/b", {}],
  "network.isolate": ["yes", 1, null],
  "network.host_ports": ["tcp/80", ["80"], ["tcp/0"], ["tcp/65536"], ["udp/70000"], ["icmp/1"], [
    80,
  ]],
  "network.host_addresses": [
    "10.0.0.1",
    ["10.0.0.0/24"],
    ["10.0.0.255/24"],
    ["10.0.0.256"],
    ["::1"],
    ["host"],
    [1],
    Array.from({ length: 65 }, (_, i) => `10.0.0.${i}`),
  ],
  "network.blocked": [
    "10.0.0.0/8",
    ["10.0.0.0"],
    ["10.0.0.1/8"],
    ["10.0.0.0/33"],
    ["010.0.0.0/8"],
    ["fd00::/8"],
    ["10.0.0.0/255.0.0.0"],
    [""],
    [8],
    null,
    Array.from({ length: 65 }, (_, i) => `10.0.${i}.0/24`),
  ],
  vcpus: [0, 1025, "2", [2], { a: 2 }],
  memory_mib: [63, 16_777_217, "2G"],
  disk_gib: [0, 65_537, null],
  keep_minutes: [-1, 43_201, "1h"],
  nested: ["yes", 0],
  "limits.vcpus": [0, 1025, "2"],
  "limits.memory_mib": [63, 16_777_217],
  "limits.disk_gib": [0, 65_537],
  "limits.keep_minutes": [-1, 43_201],
  "host.max_kept_machines": [-1, 10_001, "4"],
  "limits.nested": ["true", 1],
  "cpu.shares": [1, 10_001],
  "disk.mib_per_second": [0, 1.5],
  "disk.iops": [0, "many"],
  "network.mib_per_second": [0, null],
  machine_type: ["", "q 35", "q35\n", 35],
  firmware: ["uefi", "", null],
  "cpu.mode": ["custom", "host"],
  start: ["hot", true],
  standby: [-1, 101, "2"],
  "ssh.login": ["cloud_init", true, null],
  "ssh.user": ["", "Root", "a b", "-a", "a;b", "a".repeat(33), 0],
  "ssh.port": [0, 65_536, "22"],
  "ssh.key": ["", "id_ed25519", "./key", "~", "~/", "/", "/a\nb"],
  "guest.shell": ["zsh", "/bin/sh", "pwsh"],
  "guest.builds_dir": ["", "builds", "~/builds", "/a\nb"],
  "guest.cache_dir": ["cache", 1],
  "timeouts.address_seconds": [0, "1m"],
  "timeouts.ssh_seconds": [0, 1e9],
  templates: [[], "fedora", 3, null],
  rules: [{}, "all", 3, null],
};

Deno.test("each setting refuses a wrong type and what is out of its range, by its name", () => {
  for (const [key, values] of Object.entries(WRONG)) {
    for (const value of values) {
      const mistakes = mistakesIn(JSON.stringify(nested(key, value)));
      assert.equal(mistakes.length, 1, `${key}: ${JSON.stringify(value)}: ${mistakes}`);
      assert.match(mistakes[0] ?? "", new RegExp(`"${key}(\\.0)?" must be `));
    }
  }
});

Deno.test("who has the hypervisor chosen is told what to set, and what emulation costs", () => {
  assert.deepEqual(mistakesIn("templates: { old: { domain_type: auto } }"), [
    'config.yaml:1:34: "templates.old.domain_type" must be kvm, or qemu for emulation, which is ' +
    'slow and not a security boundary, not "auto"',
  ]);
});

Deno.test("the wrong values above cover every setting", () => {
  const keys = settingsIn(FILE).map(([key]) => key);
  assert.deepEqual(Object.keys(WRONG).sort(), keys.sort());
});

Deno.test("a setting takes the ends of its range", () => {
  for (const yaml of ["vcpus: 1", "vcpus: 1024", "memory_mib: 64", "ssh: {port: 65535}"]) {
    assert.deepEqual(mistakesIn(yaml), []);
  }
});

Deno.test("an alias that is the name of another template is a mistake, at the alias", () => {
  assert.deepEqual(mistakesIn("templates:\n  a: {aliases: [x, b]}\n  b:\n"), [
    'config.yaml:2:20: "templates.a.aliases.1" must be a new name: "b" is the template "b"',
  ]);
});

Deno.test("two templates with the same alias are a mistake, at the second", () => {
  assert.deepEqual(mistakesIn("templates:\n  a: {aliases: [x]}\n  b: {aliases: [y, x]}\n"), [
    'config.yaml:3:20: "templates.b.aliases.1" must be a new name: "x" is the template "a"',
  ]);
});

Deno.test("what contradicts each other is looked at once each value by itself is valid", () => {
  const yaml = "pools: {templates: a, overlays: a}\nvcpus: 9\nlimits: {vcpus: 1}\nstandby: ";
  assert.deepEqual(mistakesIn(`${yaml}x`).map((mistake) => mistake.replace(/:.*/, "")), [
    "config.yaml",
  ]);
  assert.equal(mistakesIn(`${yaml}2`).length, 2);
});

Deno.test("the mistakes come with the advice to edit the file", () => {
  assert.throws(() => parseConfig("vcpus: 0", "/etc/x.yaml"), {
    name: "SystemFailure",
    advice: /Edit "\/etc\/x.yaml"; docs\/settings.md lists all settings/,
  });
});

Deno.test("a rule can set everything, and nothing is null in it", () => {
  const { rules } = parseConfig(
    `
    rules:
      - projects: [grp/*, a/b]
        protected: true
        templates: [ci-*]
        max_machines: 3
        limits: { vcpus: 4, memory_mib: 4096, disk_gib: 50, keep_minutes: 0, nested: true }
      - limits: { vcpus: 2 }
    `,
    "config.yaml",
  );
  assert.deepEqual(rules, [
    {
      name: "rule 1 (rules[0])",
      projects: ["grp/*", "a/b"],
      protected: true,
      templates: ["ci-*"],
      maxMachines: 3,
      limits: { vcpus: 4, memoryMib: 4096, diskGib: 50, keepMinutes: 0, nested: true },
    },
    {
      name: "rule 2 (rules[1])",
      projects: null,
      protected: null,
      templates: null,
      maxMachines: null,
      limits: { vcpus: 2, memoryMib: null, diskGib: null, keepMinutes: null, nested: null },
    },
  ]);
});

Deno.test("a rule refuses what is wrong in it, and keys of templates", () => {
  const rule = "projects: [], protected: 1, templates: a, limits: {vcpus: 0}, " +
    "max_machines: 0, vcpus: 3, firmware: efi";
  assert.deepEqual(
    mistakesIn(`rules: [{${rule}}, 3]`).map((mistake) => mistake.replace(/^.*?: /, "")),
    [
      '"rules.0.projects" must be a list of at least one project or pattern, not a list',
      '"rules.0.protected" must be true or false, not 1',
      '"rules.0.templates" must be a list of names and patterns, such as [debian-*], not "a"',
      '"rules.0.limits.vcpus" must be a whole number from 1 to 1024, not 0',
      '"rules.0.max_machines" must be a whole number from 1 to 10000, not 0',
      '"rules.0.vcpus" is unknown; did you mean "limits.vcpus"?',
      '"rules.0.firmware" is unknown; known here: projects, protected, templates, max_machines, ' +
      "limits",
      '"rules.1" must be keys with values, not 3',
    ],
  );
});

Deno.test("a rule that changes nothing is a mistake", () => {
  assert.deepEqual(mistakesIn("rules:\n  - projects: [a]\n    protected: true\n"), [
    'config.yaml:2:5: "rules.0" has no effect: it needs templates, limits or max_machines',
  ]);
});

Deno.test("a rule that none of the jobs can reach is a mistake", () => {
  const rules =
    "[{projects: [a], max_machines: 3}, {max_machines: 3}, {protected: true, max_machines: 3}]";
  assert.deepEqual(mistakesIn(`rules: ${rules}`), [
    'config.yaml:1:62: "rules.2" is never reached: "rules.1" has neither projects nor protected',
  ]);
});

for (
  const [what, yaml, mistake] of [
    [
      "is less than",
      "vcpus: 4\nlimits: {vcpus: 3}",
      '2:17: "limits.vcpus" must be at least "vcpus" (4), not 3',
    ],
    [
      "is less than the default of",
      "limits: {memory_mib: 1024}",
      '1:22: "limits.memory_mib" must be at least "memory_mib" (2048), not 1024',
    ],
    [
      "of a template is less than its inherited",
      "disk_gib: 9\ntemplates: {a: {limits: {disk_gib: 8}}}",
      '2:36: "templates.a.limits.disk_gib" must be at least "disk_gib" (9), not 8',
    ],
    [
      "of all templates is less than one template's own",
      "limits: {vcpus: 4}\ntemplates: {a: {vcpus: 8, limits: {vcpus: 9}}, b: {}}",
      '2:24: "templates.a.vcpus" must be at most "limits.vcpus" (4), not 8',
    ],
  ] as const
) {
  Deno.test(`a largest size that ${what} size is a mistake`, () => {
    assert.deepEqual(mistakesIn(yaml), [`config.yaml:${mistake}`]);
  });
}

for (
  const [what, yaml] of [
    ["without a size of its own", "limits: {disk_gib: 1}"],
    ["as large as the size", "vcpus: 4\nlimits: {vcpus: 4}"],
    ["of a template that has less", "vcpus: 4\ntemplates: {a: {vcpus: 1, limits: {vcpus: 2}}}"],
    [
      "that a rule raises for a large template",
      "limits: {vcpus: 4}\ntemplates: {a: {vcpus: 8}}\nrules: [{projects: [b], limits: {vcpus: 8}}]",
    ],
  ] as const
) {
  Deno.test(`a largest size ${what} is no mistake`, () => assert.deepEqual(mistakesIn(yaml), []));
}

Deno.test("a key that is a list, or has keys itself, is a mistake and is never printed", () => {
  assert.deepEqual(mistakesIn("? [a]\n: b"), ["config.yaml:1:3: A key must be a name here"]);
  assert.equal(mistakesIn("{".repeat(300) + "}".repeat(300)).length, 299);
});

Deno.test("anchors that multiply are refused, and not resolved", () => {
  const lines = ["a: &a0 [x, x]"];
  for (let i = 1; i < 9; i++) lines.push(`a${i}: &a${i} [${`*a${i - 1}, `.repeat(9)}]`);
  assert.throws(() => parseConfig(lines.join("\n"), "config.yaml"), {
    name: "SystemFailure",
    message: 'Cannot parse the settings in "config.yaml"',
  });
});

/** Whatever the text is, the settings are read or refused in the program's own words. */
function assertReadOrRefused(yaml: string): void {
  try {
    parseConfig(yaml, "config.yaml");
  } catch (error) {
    assert(error instanceof SystemFailure, Deno.inspect(error));
  }
}

const yamlPiece = fc.oneof(
  fc.constantFrom(...Object.keys(FILE), ...Object.keys(RULE), "uri", "vcpus", "__proto__"),
  fc.constantFrom(": ", ":\n  ", "\n", "- ", "[", "]", "{", "}", ", ", "'", '"', "|\n ", "? ", "#"),
  fc.constantFrom(
    "&a ",
    "*a",
    "!!map",
    "<<: ",
    "~",
    "1",
    "true",
    ".inf",
    "0x10",
    "---\n",
    "%YAML 9",
  ),
  fc.string({ unit: "binary", maxLength: 5 }),
);

Deno.test("no text at all makes the settings fail in any other way", () => {
  const text = fc.array(yamlPiece, { maxLength: 20 }).map((pieces) => pieces.join(""));
  fc.assert(fc.property(text, assertReadOrRefused), { numRuns: 3000 });
});

Deno.test("no value at all makes the settings fail in any other way", () => {
  const key = fc.oneof(
    fc.constantFrom(...Object.keys(FILE), ...Object.keys(RULE), "uri", "__proto__", "volume"),
    fc.string(),
  );
  const { value } = fc.letrec((tie) => ({
    value: fc.oneof(
      { maxDepth: 4 },
      fc.jsonValue({ maxDepth: 1 }),
      fc.array(tie("value"), { maxLength: 3 }),
      fc.dictionary(key, tie("value"), { maxKeys: 4 }),
    ),
  }));
  fc.assert(
    fc.property(
      fc.dictionary(key, value),
      (settings) => assertReadOrRefused(JSON.stringify(settings)),
    ),
    { numRuns: 2000 },
  );
});

/** Writes a file that only we may write, whatever the umask is. */
function writeSettings(file: string, yaml: string): Promise<void> {
  return Deno.writeTextFile(file, yaml, { mode: 0o600 });
}

Deno.test("loadConfig() reads the file of --config and no other", async () => {
  await withDirectory(async (directory) => {
    const file = `${directory}/mine.yaml`;
    await writeSettings(file, "vcpus: 5\n");
    await Deno.mkdir(`${directory}/libvirt-gci`);
    await writeSettings(`${directory}/libvirt-gci/config.yaml`, "nonsense");
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
      advice: /exists and that this user can read it/,
    });
  });
});

Deno.test("loadConfig() reports the mistakes with the path of the file", async () => {
  await withDirectory(async (home) => {
    const file = `${home}/bad.yaml`;
    await writeSettings(file, "\nvcpus: 0\n");
    await assert.rejects(loadConfig({ file, home, xdgConfigHome: undefined }), {
      name: "SystemFailure",
      message: /\/bad\.yaml:2:8: "vcpus" must be/,
    });
  });
});

/** A settings file with these modes and owners, in a directory of its own. */
async function withModes(
  { file = 0o644, directory = 0o755, fileOwner = null, directoryOwner = null }: {
    readonly file?: number;
    readonly directory?: number;
    readonly fileOwner?: number | null;
    readonly directoryOwner?: number | null;
  },
  use: (file: string) => Promise<void>,
): Promise<void> {
  await withDirectory(async (outer) => {
    const inner = `${outer}/etc`;
    const path = `${inner}/config.yaml`;
    await Deno.mkdir(inner);
    await writeSettings(path, "vcpus: 5\n");
    if (fileOwner !== null) await Deno.chown(path, fileOwner, fileOwner);
    if (directoryOwner !== null) await Deno.chown(inner, directoryOwner, directoryOwner);
    await Deno.chmod(path, file);
    await Deno.chmod(inner, directory);
    await use(path);
  });
}

const NOBODY = 65_534;

function load(file: string): ReturnType<typeof loadConfig> {
  return loadConfig({ file, home: undefined, xdgConfigHome: undefined });
}

for (
  const [what, modes] of [
    ["a file that only its owner may write", { file: 0o600, directory: 0o700 }],
    ["a file that all may read", { file: 0o644, directory: 0o755 }],
    ["a file in a directory with the sticky bit", { directory: 0o1777 }],
  ] as const
) {
  Deno.test(`loadConfig() reads ${what}`, () =>
    withModes(modes, async (file) => assert.equal((await load(file)).machine.vcpus, 5)));
}

for (
  const [what, modes, mode] of [
    ["a file that its group may write", { file: 0o664 }, "664"],
    ["a file that all may write", { file: 0o602 }, "602"],
    ["a writable file, sticky bit or not", { file: 0o666, directory: 0o1777 }, "666"],
    ["a file in a directory that its group may write", { directory: 0o775 }, "775"],
    ["a file in a directory that all may write", { directory: 0o777 }, "777"],
  ] as const
) {
  Deno.test(`loadConfig() refuses ${what}, and says how to mend it`, () =>
    withModes(modes, async (file) => {
      const path = "file" in modes ? file : file.replace(/\/[^/]*$/, "");
      await assert.rejects(load(file), {
        name: "SystemFailure",
        message: `Other users can write the settings: "${path}" has the mode ${mode}`,
        advice: `chmod go-w "${path}"`,
      });
    }));
}

const isRoot = (await Deno.stat("/proc/self")).uid === 0;

for (
  const [what, owners] of [
    ["a file of another user", { fileOwner: NOBODY }],
    ["a file in a directory of another user", { directoryOwner: NOBODY }],
  ] as const
) {
  Deno.test({
    name: `loadConfig() refuses ${what}, and says how to mend it`,
    ignore: !isRoot,
    fn: () =>
      withModes(owners, async (file) => {
        const path = "fileOwner" in owners ? file : file.replace(/\/[^/]*$/, "");
        await assert.rejects(load(file), {
          name: "SystemFailure",
          message: `Other users can write the settings: "${path}" belongs to the user 65534`,
          advice: `chown root "${path}"`,
        });
      }),
  });
}

Deno.test("loadConfig() looks at the file behind a link, and at both directories", async () => {
  await withModes({ directory: 0o777 }, (file) =>
    withDirectory(async (directory) => {
      const link = `${directory}/link.yaml`;
      await Deno.symlink(file, link);
      await assert.rejects(load(link), /etc" has the mode 777/);
      await Deno.chmod(file.replace(/\/[^/]*$/, ""), 0o755);
      assert.equal((await load(link)).machine.vcpus, 5);
      await Deno.chmod(directory, 0o777);
      await assert.rejects(load(link), /" has the mode 777/);
      await Deno.chmod(directory, 0o700);
      await Deno.chmod(file, 0o646);
      await assert.rejects(load(link), /link\.yaml" has the mode 646/);
    }));
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
        await Deno.mkdir(`${home}/${below}/libvirt-gci`, { recursive: true, mode: 0o700 });
        await writeSettings(`${home}/${below}/libvirt-gci/config.yaml`, "vcpus: 6\n");
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

Deno.test({
  name: "loadConfig() refuses an unsafe file of a user, and does not pass it over",
  ignore,
  fn: () =>
    withDirectory(async (home) => {
      const file = `${home}/.config/libvirt-gci/config.yaml`;
      await Deno.mkdir(`${home}/.config/libvirt-gci`, { recursive: true, mode: 0o700 });
      await writeSettings(file, "vcpus: 6\n");
      await Deno.chmod(file, 0o666);
      await assert.rejects(loadConfig({ home, xdgConfigHome: undefined }), {
        name: "SystemFailure",
        advice: `chmod go-w "${file}"`,
      });
    }),
});
