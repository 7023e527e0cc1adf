// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { parseConfig } from "../../src/settings/load.ts";
import { bootTemplate } from "../../src/doctor/boot.ts";
import { virsh } from "../../src/shell.ts";
import { install } from "../../src/doctor/install.ts";
import { checkDaemon, checkEmulator, emulatorFindings } from "../../src/doctor/daemon.ts";
import { doctor, examine, type GroupedFinding } from "../../src/doctor/checks.ts";
import { ok, problem, warning } from "../../src/doctor/finding.ts";
import { failureOf, findingsJson, findingsText } from "../../src/doctor/report.ts";
import { checkSettings } from "../../src/doctor/settings_check.ts";
import { SystemFailure } from "../../src/errors.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { allOk, doctorHost, only } from "../fakes/test_doctor.ts";
import { openTestHost } from "../fakes/test_host.ts";

// In libvirt's test driver there is no KVM, no network has options of dnsmasq, and no pool but ours has a filter.
const UNKNOWN_TO_TEST_DRIVER =
  /pings each address|has STP|leased for|network filters|does not offer it/;

Deno.test("a host that is set up well has nothing but ok in every group", async () => {
  await using connection = await openTestHost();
  await using host = await doctorHost({ connection });
  const findings = await doctor(host);
  allOk(findings.filter(({ subject }) => !UNKNOWN_TO_TEST_DRIVER.test(subject)));
  assert.deepEqual([...new Set(findings.map(({ group }) => group))], [
    ...["settings", "libvirt", "KVM", "storage", "network", "isolation", "templates"],
    ...["security modules", "hardening", "GitLab Runner"],
  ]);
});

Deno.test("doctor() goes on without libvirt", async () => {
  await using host = await doctorHost();
  const findings = await doctor(host);
  const problems = findings.filter(({ level }) => level !== "ok");
  assert.deepEqual(problems.map(({ group }) => group), ["libvirt"]);
  assert(findings.some(({ group }) => group === "GitLab Runner"));
});

Deno.test("a check that fails is a problem, and keeps no other from its findings", async () => {
  await using host = await doctorHost();
  const failure = new SystemFailure({
    what: "It broke",
    cause: new Error("the disk is on fire"),
    advice: "Fetch water",
  });
  const findings = await examine("fire", [
    () => Promise.reject(failure),
    () => Promise.resolve([ok("All is well")]),
  ], host);
  assert.deepEqual(findings.map(({ level }) => level), ["problem", "ok"]);
  assert.match(
    findings[0]?.meaning ?? "",
    /^It broke\nbecause: the disk is on fire\nWhat to do: Fetch water\n/,
  );
  assert.equal(findings[0]?.remedy, null, "what is no command is no remedy");
});

Deno.test("a check that throws at once is a problem too", async () => {
  await using host = await doctorHost();
  const findings = await examine("x", [() => {
    throw new TypeError("wrong");
  }], host);
  assert.match(only(findings, "problem", /A check of x did not come to an end/).meaning, /wrong/);
});

Deno.test("a check that takes too long is given up", async () => {
  await using host = await doctorHost({ checkSeconds: 0.05 });
  const findings = await examine("x", [
    () => Promise.withResolvers<never>().promise,
    () => Promise.resolve([ok("All is well")]),
  ], host);
  assert.deepEqual(findings.map(({ level }) => level), ["problem", "ok"]);
  assert.match(findings[0]?.meaning ?? "", /no answer within 0.05 s/);
});

Deno.test("settings with mistakes are a problem that names each", async () => {
  await using host = await doctorHost({ configError: errorOf("vcpus: 0\nmemmory_mib: 5\n") });
  const { meaning } = only(await checkSettings(host), "problem", /cannot be used/);
  assert.match(meaning, /config.yaml:1:\d+: .*vcpus/);
  assert.match(meaning, /config.yaml:2:\d+: .*memmory_mib/);
  assert.match(meaning, /^What to do: Edit "\/config.yaml"/m);
});

Deno.test("settings without mistakes are ok", async () => {
  await using host = await doctorHost();
  only(await checkSettings(host), "ok", /^There is no file with settings/);
  await using other = await doctorHost({ config: { file: "/etc/c.yaml" } });
  only(await checkSettings(other), "ok", /"\/etc\/c.yaml" have no mistake; they name 0 templates/);
});

function errorOf(yaml: string): unknown {
  try {
    return parseConfig(yaml, "/config.yaml");
  } catch (error) {
    return error;
  }
}

Deno.test("a daemon that answers is told with its version and QEMU's", async () => {
  await using connection = await openTestHost();
  await using host = await doctorHost({ connection });
  const [version, user] = await checkDaemon(host);
  assert.match(version?.subject ?? "", /^libvirt 9\.0\.0 answers .* with QEMU 7\.2\.22$/);
  assert.equal(user?.level, "ok");
  only(await checkEmulator(host), "ok", /starts machines of the host's kind, i686/);
});

Deno.test("a daemon that is too old is a problem", async () => {
  await using connection = await openTestHost();
  for (
    const [yaml, version, oldest] of [
      ["", 6_000_000, "6.1.0"],
      ["login: systemd", 6_001_000, "6.5.0"],
      ["templates: { old: { firmware: efi } }", 8_000_000, "8.1.0"],
    ] as const
  ) {
    const facts = { libVersion: () => Promise.resolve(version) };
    await using host = await doctorHost({ connection, facts, config: parseConfig(yaml, "x") });
    const [found] = await checkDaemon(host);
    assert.equal(found?.level, "problem");
    assert(found?.meaning.endsWith(`use libvirt ${oldest} or newer`), found?.meaning);
  }
});

Deno.test("libvirt without a QEMU for this host is a problem", async () => {
  await using host = await doctorHost();
  const capabilities = `
    <capabilities>
      <host><cpu><arch>x86_64</arch></cpu></host>
      <guest><os_type>hvm</os_type><arch name="aarch64"/></guest>
    </capabilities>
  `;
  const { remedy } = only(
    await emulatorFindings(capabilities, host),
    "problem",
    /no QEMU for x86_64/,
  );
  assert.equal(remedy, "apt-get install qemu-system");
});

const REFUSED = await Connection.open("qemu+unix:///system?socket=/nonexistent").catch((it) => it);

Deno.test("without a daemon, the remedy starts the one that is installed", async () => {
  for (
    const [program, remedy] of [
      ["libvirtd", "systemctl enable --now libvirtd.socket"],
      [
        "virtqemud",
        "systemctl enable --now virtqemud.socket virtnetworkd.socket virtstoraged.socket " +
        "virtnwfilterd.socket virtlogd.socket",
      ],
      ["other", "apt-get install libvirt-daemon-system qemu-system libvirt-clients"],
    ]
  ) {
    const files = { [`/usr/sbin/${program}`]: { text: "", mode: 0o755 } };
    await using host = await doctorHost({ connection: REFUSED, files });
    const found = only(await checkDaemon(host), "problem", /no connection .* "qemu:\/\/\/system"/);
    assert.match(found.meaning, /Cannot connect.*\nNo job starts/);
    assert.equal(found.remedy, remedy);
  }
});

Deno.test("a user whom the daemon's socket does not let in is told which group does", async () => {
  await using host = await doctorHost({
    connection: REFUSED,
    files: {
      "/etc/group": `libvirt:x:${Deno.gid()}:\n`,
      "/etc/passwd": "alice:x:12345:12345::/home/alice:/bin/sh\n",
      "/proc/self/status": "Uid:\t12345\t12345\t0\t0\nGroups:\t12345 \n",
      "/run/libvirt/libvirt-sock": { text: "", mode: 0o770 },
    },
  });
  const { remedy } = only(await checkDaemon(host), "problem", /no connection/);
  assert.equal(remedy, "usermod --append --groups libvirt alice # then log in again");
});

Deno.test("a user whom the daemon's socket lets in gets libvirt's own advice", async () => {
  await using host = await doctorHost({
    connection: REFUSED,
    files: { "/run/libvirt/libvirt-sock": { text: "", mode: 0o777 } },
  });
  const { meaning } = only(await checkDaemon(host), "problem", /no connection/);
  assert(meaning.includes(`\nWhat to do: ${REFUSED.advice}\n`), meaning);
});

Deno.test("a hypervisor elsewhere is told, and this host's files are not looked at", async () => {
  await using host = await doctorHost({
    connection: REFUSED,
    config: { uri: "qemu+ssh://elsewhere/system" },
    files: {
      ...{ "/usr/sbin/ebtables": undefined, "/dev/kvm": undefined },
      "/sys/devices/system/cpu/smt/active": "1\n",
      "/proc/swaps": "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n",
    },
    kvm: () => Promise.reject(new Error("asked for KVM")),
  });
  const findings = await doctor(host);
  assert.deepEqual(
    findings.filter(({ level }) => level !== "ok").map(({ group }) => group),
    ["libvirt"],
  );
  assert.deepEqual(
    findings.filter(({ group }) => /KVM|isolation|security|hardening/.test(group)),
    [],
  );
});

const FINDINGS: readonly GroupedFinding[] = [
  { group: "storage", ...ok("Space enough") },
  {
    group: "storage",
    ...warning("Little space", {
      meaning: `${"A disk cannot grow. ".repeat(8).trim()}\nThen a job hangs`,
      remedy: "rm -r /tmp/big",
    }),
  },
  { group: "network", ...problem("No network", { meaning: "No job starts" }) },
];

Deno.test("findingsText() has a line for each, in groups, with marks and remedies", () => {
  assert.equal(
    findingsText(FINDINGS),
    `\
storage
  ok       Space enough
  warning  Little space
           A disk cannot grow. A disk cannot grow. A disk cannot grow. A disk cannot grow. A disk
           cannot grow. A disk cannot grow. A disk cannot grow. A disk cannot grow.
           Then a job hangs
           > rm -r /tmp/big

network
  problem  No network
           No job starts

1 problem, 1 warning, 1 ok`,
  );
});

Deno.test("colours leave findingsText() as it is, and a terminal obeys nothing in it", () => {
  const findings = [...FINDINGS, { group: "\x1b[2J", ...ok("\x1b[2J") }];
  const painted = findingsText(findings, (colour, text) => `<${colour}>${text}</>`);
  assert.equal(painted.replaceAll(/<[^>]*>/g, ""), findingsText(findings));
  assert.deepEqual(
    painted.match(/<\w+>\w+(?=<\/>)/g),
    ["<green>ok", "<yellow>warning", "<red>problem", "<green>ok"],
  );
  assert(!painted.includes("\x1b"));
});

Deno.test("findingsJson() has all findings, and how many are bad", () => {
  const { problems, warnings, findings } = JSON.parse(findingsJson(FINDINGS));
  assert.deepEqual([problems, warnings], [1, 1]);
  assert.deepEqual(findings, FINDINGS);
});

Deno.test("only problems make doctor fail", () => {
  assert.equal(failureOf(FINDINGS.filter(({ level }) => level !== "problem")), null);
  assert.match(failureOf(FINDINGS)?.message ?? "", /not ready for jobs: 1 problem, 1 warning/);
});

Deno.test("a remedy can be pasted whatever the names in it are", async () => {
  assert.equal(
    virsh({ uri: "qemu:///system" }, "pool-start", "it's mine; rm -r /"),
    "virsh -c qemu:///system pool-start 'it'\\''s mine; rm -r /'",
  );
  await using host = await doctorHost({
    files: { "/etc/os-release": 'ID="rocky"\nID_LIKE="rhel centos fedora"\n' },
  });
  const packages = { debian: "a", fedora: "b c", arch: "d" };
  assert.equal(await install(host, packages), "dnf install b c");
  await using arch = await doctorHost({ files: { "/etc/os-release": "ID=arch\n" } });
  assert.equal(await install(arch, packages), "pacman -S d");
});

Deno.test("bootTemplate() runs a whole job and says what each stage took", async () => {
  const stages: string[] = [];
  const findings = await bootTemplate("debian-12", {
    prepare: () => Promise.resolve(void stages.push("prepare")),
    run: async (script) => {
      stages.push("run");
      const { stdout } = await new Deno.Command("/bin/sh", {
        args: ["-c", script],
        env: { PATH: "/nonexistent" },
      }).output();
      return new TextDecoder().decode(stdout);
    },
    cleanup: () => Promise.resolve(void stages.push("cleanup")),
  });
  assert.deepEqual(stages, ["prepare", "run", "cleanup"]);
  assert.deepEqual(
    findings.map(({ level, subject }) => [level, subject.replace(/[\d.]+ s/, "N s")]),
    [
      ["ok", "prepare: N s"],
      ["ok", "run: N s"],
      ["problem", 'The template "debian-12" has no git that runs'],
      ["warning", 'The template "debian-12" has no gitlab-runner that runs'],
      ["ok", "cleanup: N s"],
    ],
  );
});

Deno.test("bootTemplate() counts a program that does not run as missing, and says how to install it", async () => {
  const bin = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  for (const [program, status] of [["git", 0], ["gitlab-runner", 126]] as const) {
    await Deno.writeTextFile(`${bin}/${program}`, `#!/bin/sh\nexit ${status}\n`, { mode: 0o755 });
  }
  const findings = await bootTemplate("debian-12", {
    prepare: () => Promise.resolve(),
    run: async (script) => {
      const args = ["-c", script];
      const { stdout } = await new Deno.Command("/bin/sh", { args, env: { PATH: bin } }).output();
      return new TextDecoder().decode(stdout);
    },
    cleanup: () => Promise.resolve(),
  });
  await Deno.remove(bin, { recursive: true });
  const [missing, ...others] = findings.filter(({ level }) => level !== "ok");
  assert.deepEqual(others, []);
  assert.equal(missing?.subject, 'The template "debian-12" has no gitlab-runner that runs');
  assert.match(
    missing.meaning,
    /^A job passes without its artifacts and caches\. Copy .* make_base_image\.sh --replace VM$/,
  );
});

Deno.test("bootTemplate() cleans up after a script that fails, but not after prepare", async () => {
  let cleanups = 0;
  const cleanup = () => Promise.resolve(void cleanups++);
  const fail = () =>
    Promise.reject(new SystemFailure({ what: "No lease", advice: "Look at its console" }));

  const unprepared = await bootTemplate("x", { prepare: fail, run: fail, cleanup });
  const { meaning, remedy } = only(unprepared, "problem", /^prepare failed after \d+\.\d s$/);
  assert.deepEqual([meaning, remedy], ["No lease\nWhat to do: Look at its console", null]);
  assert.equal(cleanups, 0);

  const prepare = () => Promise.resolve();
  const unrun = await bootTemplate("x", { prepare, run: fail, cleanup });
  assert.deepEqual(unrun.map(({ level }) => level), ["ok", "problem", "ok"]);
  assert.equal(cleanups, 1);
});
