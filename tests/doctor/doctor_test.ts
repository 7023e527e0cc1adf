// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { bootTemplate } from "../../src/doctor/boot.ts";
import type { Check } from "../../src/doctor/check.ts";
import { examine, type GroupedFinding, runChecks } from "../../src/doctor/checks.ts";
import { checkDaemon, checkEmulator, emulatorFinding } from "../../src/doctor/daemon.ts";
import { type Finding, ok, problem, warning } from "../../src/doctor/finding.ts";
import { install } from "../../src/doctor/host_files.ts";
import { failureOf, findingsJson, findingsText } from "../../src/doctor/report.ts";
import { checkSettings } from "../../src/doctor/settings_check.ts";
import { SystemFailure } from "../../src/errors.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { parseConfig } from "../../src/settings/read.ts";
import { virsh } from "../../src/shell.ts";
import {
  allOk,
  answerCalls,
  doctorHost,
  type HostDifferences,
  look,
  NO_LIBVIRT,
  notOk,
  only,
} from "../fakes/test_doctor.ts";

// In libvirt's test driver there is no KVM, no network has options of dnsmasq, and no pool but ours has a filter.
const UNKNOWN_TO_TEST_DRIVER =
  /pings addresses|uses STP|leased for|network filters|does not offer it/;

async function findingsOn(differences: HostDifferences): Promise<GroupedFinding[]> {
  await using host = await doctorHost(differences);
  return await runChecks(host);
}

Deno.test("a host that is set up well has nothing but ok in every group", async () => {
  const findings = await findingsOn({});
  allOk(findings.filter(({ subject }) => !UNKNOWN_TO_TEST_DRIVER.test(subject)));
  assert.equal(
    [...new Set(findings.map(({ group }) => group))].join(", "),
    "settings, libvirt, KVM, storage, network, isolation, templates, security modules, " +
      "hardening, GitLab Runner",
  );
});

Deno.test("doctor goes on without libvirt", async () => {
  const findings = await findingsOn({ connection: NO_LIBVIRT });
  const problems = findings.filter(({ level }) => level !== "ok");
  assert.deepEqual(problems.map(({ group }) => group), ["libvirt"]);
  assert(findings.some(({ group }) => group === "GitLab Runner"));
  assert(!findings.some(({ group }) => /storage|network|templates/.test(group)));
});

/** What a group has with this check, and one that is ok. */
function examineOne(check: Check, differences: HostDifferences = {}): Promise<Finding[]> {
  const group = { name: "x", checks: [check, () => ok("All is well")] };
  return look((host) => examine(group, host), { connection: NO_LIBVIRT, ...differences });
}

Deno.test("a check that fails is a problem, and keeps no other from its findings", async () => {
  const failure = new SystemFailure({
    what: "It broke",
    cause: new Error("the disk is on fire"),
    advice: "Fetch water",
  });
  const [found, other] = await examineOne(() => Promise.reject(failure));
  assert.deepEqual([found?.level, other?.level], ["problem", "ok"]);
  assert.match(
    found?.meaning ?? "",
    /^It broke\nbecause: the disk is on fire\nWhat to do: Fetch water\n/,
  );
  assert.equal(found?.remedy, null, "what is no command is no remedy");
});

Deno.test("a check that throws at once is a problem too", async () => {
  const findings = notOk(
    await examineOne(() => {
      throw new TypeError("wrong");
    }),
  );
  assert.match(only(findings, "problem", /A check of x did not finish/).meaning, /wrong/);
});

Deno.test("a check that takes too long is given up", async () => {
  const never = () => Promise.withResolvers<never>().promise;
  const [found, other] = await examineOne(never, { checkSeconds: 0.05 });
  assert.deepEqual([found?.level, other?.level], ["problem", "ok"]);
  assert.match(found?.meaning ?? "", /no answer within 0.05 s/);
});

Deno.test("a check gives one finding, none, or lists of these, and all are told in order", async () => {
  const findings = await examineOne(() => [ok("1"), null, [ok("2"), [ok("3")]]]);
  assert.deepEqual(findings.map(({ subject }) => subject), ["1", "2", "3", "All is well"]);
  assert.deepEqual((await examineOne(() => null)).map(({ subject }) => subject), ["All is well"]);
});

Deno.test("settings with mistakes are a problem that names each", async () => {
  const configError = errorOf("vcpus: 0\nmemmory_mib: 5\n");
  const found = await look(checkSettings, { configError });
  const { meaning } = only(found, "problem", /cannot be used/);
  assert.match(meaning, /config.yaml:1:\d+: .*vcpus/);
  assert.match(meaning, /config.yaml:2:\d+: .*memmory_mib/);
  assert.match(meaning, /^What to do: Edit "\/config.yaml"/m);
});

Deno.test("settings without mistakes are ok", async () => {
  only(await look(checkSettings), "ok", /^No settings file/);
  const found = await look(checkSettings, { config: { file: "/etc/c.yaml" } });
  only(found, "ok", /"\/etc\/c.yaml" are valid and name 0 templates/);
});

function errorOf(yaml: string): unknown {
  try {
    return parseConfig(yaml, "/config.yaml");
  } catch (error) {
    return error;
  }
}

Deno.test("a daemon that answers is told with its version and QEMU's", async () => {
  const [version, user] = await look(checkDaemon);
  assert.match(version?.subject ?? "", /^Connected to libvirt 9\.0\.0 with QEMU 7\.2\.22 at "qemu/);
  assert.equal(user?.level, "ok");
  only(await look(checkEmulator), "ok", /has a QEMU for this host's architecture, i686/);
});

Deno.test("a daemon that is too old is a problem", async () => {
  for (
    const [yaml, virConnectGetLibVersion, oldest] of [
      ["", 6_000_000n, "6.1.0"],
      ["ssh: {login: systemd}", 6_001_000n, "6.5.0"],
      ["templates: { old: { firmware: efi } }", 8_000_000n, "8.1.0"],
    ] as const
  ) {
    const libvirt: HostDifferences["libvirt"] = (it) =>
      answerCalls(it, { virConnectGetLibVersion });
    const { meaning } = only(
      notOk(await look(checkDaemon, { yaml, libvirt })),
      "problem",
      /libvirt/,
    );
    assert(meaning.endsWith(`needs libvirt ${oldest} or newer`), meaning);
  }
});

Deno.test("libvirt without a QEMU for this host is a problem", async () => {
  const guest = '<guest><os_type>hvm</os_type><arch name="aarch64"/></guest>';
  const capabilities =
    `<capabilities><host><cpu><arch>x86_64</arch></cpu></host>${guest}</capabilities>`;
  const found = await look((host) => emulatorFinding(capabilities, host));
  const { remedy } = only(found, "problem", /no QEMU for x86_64/);
  assert.equal(remedy, "apt-get install qemu-system");
});

const REFUSED = await Connection.open("qemu+unix:///system?socket=/nonexistent").catch((it) => it);

Deno.test("without a daemon, the remedy starts the one that is installed", async () => {
  const split = "virtqemud virtnetworkd virtstoraged virtnwfilterd virtlogd".split(" ");
  for (
    const [program, remedy] of [
      ["libvirtd", "systemctl enable --now libvirtd.socket"],
      ["virtqemud", `systemctl enable --now ${split.map((it) => `${it}.socket`).join(" ")}`],
      ["other", "apt-get install libvirt-daemon-system qemu-system libvirt-clients"],
    ]
  ) {
    const files = { [`/usr/sbin/${program}`]: { text: "", mode: 0o755 } };
    const findings = await look(checkDaemon, { connection: REFUSED, files });
    const found = only(findings, "problem", /No connection .* "qemu:\/\/\/system"/);
    assert.match(found.meaning, /Cannot connect.*\nNo job can start/);
    assert.equal(found.remedy, remedy);
  }
});

Deno.test("a user whom the daemon's socket does not let in is told which group does", async () => {
  const findings = await look(checkDaemon, {
    connection: REFUSED,
    files: {
      "/etc/group": `libvirt:x:${Deno.gid()}:\n`,
      "/etc/passwd": "alice:x:12345:12345::/home/alice:/bin/sh\n",
      "/proc/self/status": "Uid:\t12345\t12345\t0\t0\nGroups:\t12345 \n",
      "/run/libvirt/libvirt-sock": { text: "", mode: 0o770 },
    },
  });
  const { remedy } = only(findings, "problem", /No connection/);
  assert.equal(remedy, "usermod --append --groups libvirt alice # then log in again");
});

Deno.test("a user whom the daemon's socket lets in gets libvirt's own advice", async () => {
  const files = { "/run/libvirt/libvirt-sock": { text: "", mode: 0o777 } };
  const findings = await look(checkDaemon, { connection: REFUSED, files });
  const { meaning } = only(findings, "problem", /No connection/);
  assert(meaning.includes(`\nWhat to do: ${REFUSED.advice}\n`), meaning);
});

Deno.test("a hypervisor elsewhere is told, and this host's files are not looked at", async () => {
  const findings = await findingsOn({
    connection: REFUSED,
    config: { libvirt: { uri: "qemu+ssh://elsewhere/system" } },
    files: {
      "/usr/sbin/ebtables": undefined,
      "/dev/kvm": undefined,
      "/sys/devices/system/cpu/smt/active": "1\n",
      "/proc/swaps": "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n",
    },
    kvm: () => Promise.reject(new Error("asked for KVM")),
  });
  const problems = findings.filter(({ level }) => level !== "ok");
  assert.deepEqual(problems.map(({ group }) => group), ["libvirt"]);
  assert(!findings.some(({ group }) => /KVM|isolation|security|hardening/.test(group)));
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
  { group: "network", ...problem("No network", { meaning: "No job can start" }) },
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
           No job can start

1 problem, 1 warning, 1 check passed`,
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
  assert.match(failureOf(FINDINGS)?.message ?? "", /host is not ready: 1 problem, 1 warning/);
});

Deno.test("a remedy can be pasted whatever the names in it are", async () => {
  assert.equal(
    virsh({ uri: "qemu:///system" }, "pool-start", "it's mine; rm -r /"),
    "virsh -c qemu:///system pool-start 'it'\\''s mine; rm -r /'",
  );
  const packages = { debian: "a", fedora: "b c", arch: "d" };
  for (
    const [release, words] of [
      ['ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf install b c"],
      ["ID=arch\n", "pacman -S d"],
    ] as const
  ) {
    await using host = await doctorHost({ files: { "/etc/os-release": release } });
    assert.equal(await install(host, packages), words);
  }
});

/** Runs a script with these programs in its PATH: the names, and the status that each ends with. */
async function runWith(programs: Record<string, number>, script: string): Promise<string> {
  const bin = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  for (const [program, status] of Object.entries(programs)) {
    await Deno.writeTextFile(`${bin}/${program}`, `#!/bin/sh\nexit ${status}\n`, { mode: 0o755 });
  }
  const shell = new Deno.Command("/bin/sh", { args: ["-c", script], env: { PATH: bin } });
  const { stdout } = await shell.output();
  await Deno.remove(bin, { recursive: true });
  return new TextDecoder().decode(stdout);
}

Deno.test("bootTemplate() runs a whole job and says what each stage took", async () => {
  const stages: string[] = [];
  const findings = await bootTemplate("debian-12", {
    prepare: () => Promise.resolve(void stages.push("prepare")),
    run: (script) => {
      stages.push("run");
      return runWith({}, script);
    },
    cleanup: () => Promise.resolve(void stages.push("cleanup")),
  });
  assert.deepEqual(stages, ["prepare", "run", "cleanup"]);
  assert.deepEqual(
    findings.map(({ level, subject }) => `${level}: ${subject.replace(/[\d.]+ s/, "N s")}`),
    [
      "ok: prepare: N s",
      "ok: run: N s",
      'problem: The template "debian-12" has no working git',
      'warning: The template "debian-12" has no working gitlab-runner',
      "ok: cleanup: N s",
    ],
  );
});

Deno.test("bootTemplate() counts a program that does not run as missing, and says how to install it", async () => {
  const findings = await bootTemplate("debian-12", {
    prepare: () => Promise.resolve(),
    run: (script) => runWith({ "git": 0, "gitlab-runner": 126 }, script),
    cleanup: () => Promise.resolve(),
  });
  const { meaning } = only(
    notOk(findings),
    "warning",
    /"debian-12" has no working gitlab-runner$/,
  );
  assert.match(
    meaning,
    /^Jobs run without artifacts and caches\. Copy .* make_base_image\.sh --replace VM$/,
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
