// SPDX-License-Identifier: GPL-2.0-or-later
import { NetworkFilter } from "../../src/libvirt/network_filter.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import assert from "node:assert/strict";
import { parseConfig } from "../../src/settings/load.ts";
import {
  checkBridgeTracking,
  checkCapability,
  checkFilterPrograms,
  checkFilters,
  checkFirewall,
} from "../../src/doctor/filters.ts";
import { checkKeys } from "../../src/doctor/keys.ts";
import {
  checkEmulation,
  checkKvm,
  checkKvmDevice,
  checkNested,
  offerFinding,
} from "../../src/doctor/kvm.ts";
import { registerCommand } from "../../src/doctor/register_command.ts";
import { checkRunner } from "../../src/doctor/runner.ts";
import { parseRunnerConfig } from "../../src/doctor/runner_config.ts";
import { checkSwap, checkThreads } from "../../src/doctor/hardening.ts";
import { checkSecurityModules, confinesBy } from "../../src/doctor/security_modules.ts";
import { makeKeyPair } from "../../src/guest/key.ts";
import { allOk, doctorHost, HEALTHY, only } from "../fakes/test_doctor.ts";
import { openTestHost } from "../fakes/test_host.ts";

const BROKEN_KVM = { works: false, reason: "KVM starts but a guest's kernel never boots" } as const;

Deno.test("KVM that runs guests is ok", async () => {
  await using host = await doctorHost();
  only(await checkKvm(host), "ok", /^KVM runs guests$/);
});

Deno.test("KVM that runs no guest is a problem, and what to set instead has its price", async () => {
  await using host = await doctorHost({ kvm: () => Promise.resolve(BROKEN_KVM) });
  const { meaning, remedy } = only(await checkKvm(host), "problem", /runs no guest/);
  assert.match(meaning, /never boots. With domain_type: kvm, machines hang or do not start/);
  assert.match(meaning, /domain_type: qemu .*slow and, .*no security boundary/);
  assert.equal(remedy, null);
});

Deno.test("emulated machines are a warning, also those of a single template", async () => {
  await using kvm = await doctorHost();
  assert.deepEqual(await checkEmulation(kvm), []);
  const one = parseConfig("templates: { old: { domain_type: qemu } }", "x");
  for (const differences of [{ machine: { domainType: "qemu" } }, { config: one }]) {
    await using host = await doctorHost(differences);
    const { meaning } = only(await checkEmulation(host), "warning", /domain_type is qemu/);
    assert.match(meaning, /slow and, .*no security boundary/);
  }
});

Deno.test("without /dev/kvm, the remedy loads the module", async () => {
  await using host = await doctorHost({
    kvm: () => Promise.resolve({ works: null, reason: "/dev/kvm does not exist" }),
    files: { "/dev/kvm": undefined },
  });
  const { remedy } = only(await checkKvm(host), "problem", /runs no guest/);
  assert.equal(remedy, "modprobe kvm_intel || modprobe kvm_amd");
  assert.deepEqual(await checkKvmDevice(host), []);
});

Deno.test("KVM that this user may not try is a warning", async () => {
  const reason = "no permission on /dev/kvm";
  await using host = await doctorHost({ kvm: () => Promise.resolve({ works: null, reason }) });
  assert.match(only(await checkKvm(host), "warning", /Nobody knows/).meaning, /no permission/);
});

Deno.test("nobody asks for KVM where no machine uses it", async () => {
  await using host = await doctorHost({
    machine: { domainType: "qemu" },
    kvm: () => Promise.reject(new Error("asked")),
  });
  assert.deepEqual(await checkKvm(host), []);
});

Deno.test("KVM that works and libvirt does not offer is a problem", async () => {
  const offer = "<capabilities><guest><arch><domain type='kvm'/></arch></guest></capabilities>";
  only([offerFinding(offer)], "ok", /KVM runs guests/);
  const { remedy } = only([offerFinding("<capabilities/>")], "problem", /does not offer it/);
  // Of one daemon and of those that share its work, whichever run: none is begun beside another.
  assert.equal(remedy, "systemctl try-restart 'libvirtd.service*' 'virtqemud.service*'");
  await using connection = await openTestHost();
  await using host = await doctorHost({ connection });
  only(await checkKvm(host), "problem", /libvirt does not offer it/);
});

Deno.test("/dev/kvm that QEMU's user may not open is a warning, by qemu.conf and groups", async () => {
  const closed = { "/dev/kvm": { text: "", mode: 0o660 } };
  const ownGroup = { "/etc/group": `kvm:x:${Deno.gid()}:\n` };
  const joined = { "/etc/group": `kvm:x:${Deno.gid()}:libvirt-qemu\n` };
  const root = { "/etc/libvirt/qemu.conf": 'user = "+0"\n' };
  for (
    const [files, remedy] of [
      [{}, null],
      [{ ...closed, ...joined }, null],
      [{ ...closed, ...root }, null],
      [{ ...closed, ...ownGroup }, "usermod --append --groups kvm libvirt-qemu"],
      [closed, "chown root:kvm /dev/kvm && chmod 660 /dev/kvm"],
    ] as const
  ) {
    const noGroup = "/etc/group" in files ? {} : { "/etc/group": "" };
    await using host = await doctorHost({ files: { ...noGroup, ...files } });
    const findings = await checkKvmDevice(host);
    if (remedy === null) {
      only(findings, "ok", /may open \/dev\/kvm/);
    } else {
      const found = only(findings, "warning", /user, libvirt-qemu, may not open \/dev\/kvm/);
      assert.match(found.meaning, /13 s/);
      assert.equal(found.remedy, remedy);
    }
  }
});

Deno.test("nested virtualisation that is off is told where the settings want it", async () => {
  const off = { "/sys/module/kvm_intel/parameters/nested": "0\n" };
  const none = { "/sys/module/kvm_intel/parameters/nested": undefined };
  const amd = { ...none, "/sys/module/kvm_amd/parameters/nested": "1\n" };
  const rules = parseConfig("rules: [{ allow_nested: true }]", "x");
  for (
    const [files, differences, level] of [
      [off, {}, null],
      [{}, { machine: { nested: true } }, "ok"],
      [amd, { machine: { nested: true } }, "ok"],
      [off, { machine: { nested: true } }, "problem"],
      [off, { machine: { allowNested: true } }, "warning"],
      [none, { config: rules }, "warning"],
    ] as const
  ) {
    await using host = await doctorHost({ files, ...differences });
    const findings = await checkNested(host);
    if (level === null) assert.deepEqual(findings, []);
    else only(findings, level, /kvm_intel|kvm_amd/);
  }
});

Deno.test("an isolated machine needs filters, ebtables, iptables and tracking", async () => {
  await using connection = await openTestHost();
  await using host = await doctorHost({
    connection,
    files: {
      "/usr/sbin/ebtables": undefined,
      "/proc/sys/net/bridge/bridge-nf-call-iptables": undefined,
    },
  });
  if (await NetworkFilter.list(connection) !== null) { // libvirt's test driver, since 10.0
    only(await checkFilters(host), "ok", /can make network filters/);
  } else {
    const filters = only(await checkFilters(host), "problem", /cannot make network filters/);
    assert.match(filters.remedy ?? "", /^apt-get install libvirt-daemon-config-nwfilter && /);
  }
  const programs = only(await checkFilterPrograms(host), "problem", /^The host has no ebtables$/);
  assert.equal(programs.remedy, "apt-get install ebtables");
  const tracking = only(await checkBridgeTracking(host), "warning", /bridge-nf-call-iptables/);
  assert.match(tracking.meaning, /above 32767/);
  assert.match(tracking.remedy ?? "", /^modprobe br_netfilter && sysctl net.bridge/);
});

Deno.test("who has not the capability CAP_NET_ADMIN isolates machines by libvirt alone", async () => {
  const user = "Uid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\nGroups:\t106 \n";
  const status = (capabilities: string) => ({
    "/proc/self/status": `${user}CapEff:\t${capabilities}\n`,
    "/etc/passwd": "ci:x:7:7::/home/ci:/bin/sh\n",
  });
  await using host = await doctorHost({ files: status("0000000000001000") });
  only(await checkCapability(host), "ok", /^With CAP_NET_ADMIN/);
  const files = status("0000000000000000");
  await using other = await doctorHost({ files });
  const { meaning } = only(await checkCapability(other), "warning", /^ci has not the capability/);
  assert.match(meaning, /link-local/);
  const dropIn = /as (\S+) does/.exec(meaning)?.[1] ?? "";
  assert.match(
    await Deno.readTextFile(new URL(`../../${dropIn}`, import.meta.url)),
    /^AmbientCapabilities=CAP_NET_ADMIN$/m,
  );
  await using open = await doctorHost({ files, machine: { isolate: false } });
  assert.deepEqual(await checkCapability(open), []);
});

Deno.test("a host with all that isolation needs is ok", async () => {
  await using connection = await openTestHost();
  await using host = await doctorHost({ connection });
  only(await checkFilterPrograms(host), "ok", /ebtables and iptables/);
  only(await checkBridgeTracking(host), "ok", /tracks/);
});

Deno.test("tracking that is switched off is a warning", async () => {
  await using host = await doctorHost({
    files: { "/proc/sys/net/bridge/bridge-nf-call-iptables": "0\n" },
  });
  only(await checkBridgeTracking(host), "warning", /is not 1/);
});

Deno.test("machines that are not isolated, or have no network, need none of it", async () => {
  const files = { "/usr/sbin/ebtables": undefined };
  for (const machine of [{ isolate: false }, { network: "none" }]) {
    await using host = await doctorHost({ machine, files });
    for (const check of [checkFilters, checkFilterPrograms, checkBridgeTracking]) {
      assert.deepEqual(await check(host), []);
    }
  }
});

Deno.test("the firewall's backend is told, and a problem without its program", async () => {
  await using connection = await openTestHost();
  const nftables = { "/etc/libvirt/network.conf": '#x = 1\nfirewall_backend = "nftables"\n' };
  const versions = [[9_000_000, /with iptables, as all before 10.4/], [10_004_000, /chooses/]];
  for (const [version, words] of versions as [number, RegExp][]) {
    const facts = { libVersion: () => Promise.resolve(version) };
    await using host = await doctorHost({ connection, facts });
    only(await checkFirewall(host), "ok", words);
  }
  await using without = await doctorHost({ files: nftables });
  const { remedy } = only(await checkFirewall(without), "problem", /nftables, .* has no nft$/);
  assert.equal(remedy, "apt-get install nftables");
  await using both = await doctorHost({ files: { ...nftables, "/usr/sbin/nft": "" } });
  only(await checkFirewall(both), "ok", /with nftables/);
});

const { privateKey } = await makeKeyPair();

Deno.test("a key that only its owner may read is ok", async () => {
  await using host = await doctorHost({
    machine: { login: "template", key: "/etc/key" },
    files: { "/etc/key": { text: privateKey, mode: 0o600 } },
  });
  only(await checkKeys(host), "ok", /\/etc\/key can be used/);
});

Deno.test("a key that others may read is a warning", async () => {
  await using host = await doctorHost({
    machine: { login: "template", key: "~/key" },
    files: { "/root/key": { text: privateKey, mode: 0o640 } },
  });
  const { remedy } = only(await checkKeys(host), "warning", /Others .* may read .*\/root\/key/);
  assert.match(remedy ?? "", /^chmod 600 .*\/root\/key$/);
});

Deno.test("a key that is missing, encrypted or none is a problem", async () => {
  for (
    const [key, text, remedy] of [
      [null, null, 'ssh-keygen -t ed25519 -N "" -f ~/.ssh/id_ed25519'],
      ["/etc/key", null, 'ssh-keygen -t ed25519 -N "" -f /etc/key'],
      ["/etc/key", await encryptedKey(), 'ssh-keygen -p -N "" -f /etc/key'],
      ["/etc/key", "no key\n", null],
    ] as const
  ) {
    await using host = await doctorHost({
      machine: { login: "template", key },
      files: text === null ? {} : { "/etc/key": { text, mode: 0o600 } },
    });
    const found = only(await checkKeys(host), "problem", key === null ? /no SSH key/ : /of no use/);
    assert.match(found.meaning, /No job starts whose template has login: template$/);
    assert.equal(found.remedy, remedy);
  }
});

async function encryptedKey(): Promise<string> {
  const { utils } = (await import("ssh2")).default;
  return utils.generateKeyPairSync("rsa", {
    ...{ bits: 2048, passphrase: "secret", cipher: "aes256-cbc" },
  }).private;
}

Deno.test("machines with keys of their own need none", async () => {
  await using host = await doctorHost();
  assert.deepEqual(await checkKeys(host), []);
});

const ENABLED = "/sys/module/apparmor/parameters/enabled";
const APPARMOR = { [ENABLED]: "Y\n" };
const SELINUX = { [ENABLED]: undefined, "/sys/fs/selinux/enforce": "1" };
const HELPER = "usr.lib.libvirt.virt-aa-helper";

Deno.test("the security module is told, with where it logs", async () => {
  for (
    const [files, words] of [
      [APPARMOR, /AppArmor confines machines; .*journalctl -k/],
      [{ [ENABLED]: "N\n", "/sys/kernel/security/apparmor": null }, /AppArmor confines machines/],
      [SELINUX, /SELinux confines machines; .*ausearch -m AVC/],
    ] as const
  ) {
    await using host = await doctorHost({ files });
    only(await checkSecurityModules(host), "ok", words);
  }
});

Deno.test("a host without a security module, or with one that only logs, is a warning", async () => {
  for (
    const [files, words, remedy] of [
      [{ [ENABLED]: undefined }, /^Neither AppArmor nor SELinux/, /^apt-get install apparmor # /],
      [{ [ENABLED]: "N\n" }, /^Neither AppArmor nor SELinux/, /^apt-get install apparmor # /],
      [{ ...SELINUX, "/sys/fs/selinux/enforce": "0" }, /SELinux is permissive/, /^setenforce 1 /],
    ] as const
  ) {
    await using host = await doctorHost({ files });
    const found = only(await checkSecurityModules(host), "warning", words);
    assert.match(found.meaning, /breaks out of QEMU/);
    assert.match(found.remedy ?? "", remedy);
  }
});

Deno.test("libvirt itself says whether it uses the security module", () => {
  const capabilities = (...models: readonly string[]): string =>
    `<capabilities><host>${
      models.map((model) => `<secmodel><model>${model}</model><doi>0</doi></secmodel>`).join("")
    }</host><guest><model>apparmor</model></guest></capabilities>`;
  assert(confinesBy("apparmor", capabilities("apparmor", "dac")));
  assert(!confinesBy("selinux", capabilities("apparmor", "dac")));
  assert(!confinesBy("apparmor", capabilities("none", "dac")));
  assert(confinesBy("apparmor", capabilities("testSecurity")), "libvirt's test driver has none");
});

Deno.test("a security module that libvirt is not to use is a warning", async () => {
  for (const files of [APPARMOR, SELINUX]) {
    await using host = await doctorHost({
      files: { ...files, "/etc/libvirt/qemu.conf": 'security_driver = [ "none" ]\n' },
    });
    only(await checkSecurityModules(host), "warning", /security_driver is none/);
  }
});

const SMT = "/sys/devices/system/cpu/smt/active";
const CORES = { ...{ [SMT]: "1\n" }, "/proc/sys/kernel/osrelease": "6.1.0-1\n" };
const KERNEL = { "/boot/config-6.1.0-1": "CONFIG_SCHED_CORE=y\n" };

Deno.test("SMT without core scheduling is a warning", async () => {
  for (
    const files of [
      { [SMT]: "0\n" },
      { [SMT]: undefined },
      { ...CORES, "/etc/libvirt/qemu.conf": '#sched_core = "none"\nsched_core = "full"\n' },
      { ...CORES, "/etc/libvirt/qemu.conf": 'sched_core = "vcpus"\n' },
    ]
  ) {
    await using host = await doctorHost({ files });
    only(await checkThreads(host), "ok", /^No machines share a core/);
  }
  for (const conf of ['#sched_core = "full"\n', 'sched_core = "none"\n', undefined]) {
    await using host = await doctorHost({ files: { ...CORES, "/etc/libvirt/qemu.conf": conf } });
    const found = only(await checkThreads(host), "warning", /^SMT is on, and machines share/);
    assert.match(found.meaning, /caches of a core/);
    assert.match(found.remedy ?? "", /^echo off > \/sys\/devices\/system\/cpu\/smt\/control # /);
  }
});

Deno.test("core scheduling is advised where libvirt and the kernel have it", async () => {
  await using connection = await openTestHost();
  const remedyOf = async (version: number, kernel: string | undefined) => {
    await using host = await doctorHost({
      connection,
      facts: { libVersion: () => Promise.resolve(version) },
      files: { ...CORES, "/boot/config-6.1.0-1": kernel },
    });
    return only(await checkThreads(host), "warning", /^SMT is on/).remedy ?? "";
  };
  const knows = KERNEL["/boot/config-6.1.0-1"];
  assert.equal(
    await remedyOf(9_000_000, knows),
    "sed -i '/^ *sched_core/d' /etc/libvirt/qemu.conf && " +
      "echo 'sched_core = \"full\"' >> /etc/libvirt/qemu.conf && " +
      "systemctl try-restart 'libvirtd.service*' 'virtqemud.service*'",
  );
  assert.match(await remedyOf(8_008_000, knows), /^echo off/);
  // With a kernel that lacks it, libvirt does not start.
  assert.match(await remedyOf(9_000_000, "# CONFIG_SCHED_CORE is not set\n"), /^echo off/);
  assert.match(await remedyOf(9_000_000, undefined), /^echo off/);
});

Deno.test({
  name: "SMT with a qemu.conf that this user may not read is a warning that says so",
  ignore: Deno.uid() === 0, // who may read all
  async fn() {
    const closed = { "/etc/libvirt/qemu.conf": { text: 'sched_core = "full"\n', mode: 0o000 } };
    await using host = await doctorHost({ files: { ...CORES, ...closed } });
    only(await checkThreads(host), "warning", /may not read .*qemu.conf/);
  },
});

/** What the doctor finds where these swap spaces are in use, such as `/dev/sda2 partition`. */
async function findingsOfSwap(
  swaps: readonly string[],
  files: Parameters<typeof doctorHost>[0] & object = {},
): Promise<Awaited<ReturnType<typeof checkSwap>>> {
  const lines = swaps.map((swap) => `${swap.replace(" ", "\t\t\t")}\t1000\t\t0\t\t-2\n`);
  const text = `Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n${lines.join("")}`;
  await using host = await doctorHost({ files: { ...files.files, "/proc/swaps": text } });
  return await checkSwap(host);
}

/** Mapped devices: the kind of each, and what it stands on. */
function mapped(devices: Readonly<Record<string, readonly [kind: string, ...on: string[]]>>) {
  const files = Object.entries(devices).flatMap(([device, [kind, ...on]]) => [
    [`/sys/block/${device}/dm/uuid`, `${kind}-0123456789abcdef\n`] as const,
    ...on.map((below) => [`/sys/block/${device}/slaves/${below}`, null] as const),
  ]);
  return { files: Object.fromEntries(files) };
}

Deno.test("without swap, or with swap that nobody can read later, all is well", async () => {
  only(await findingsOfSwap([]), "ok", /^No swap is active$/);
  const inMemory = /stays in memory, or is encrypted$/;
  only(await findingsOfSwap(["/dev/zram0 partition"]), "ok", inMemory);
  const none = { files: { "/sys/block/zram0/backing_dev": "none\n" } };
  only(await findingsOfSwap(["/dev/zram0 partition"], none), "ok", inMemory);
  const crypt = mapped({ "dm-3": ["CRYPT-PLAIN", "sda2"] });
  only(await findingsOfSwap(["/dev/dm-3 partition"], crypt), "ok", inMemory);
  const volume = mapped({ "dm-1": ["LVM", "dm-0"], "dm-0": ["CRYPT-LUKS2", "sda3"] });
  only(await findingsOfSwap(["/dev/dm-1 partition"], volume), "ok", inMemory);
});

Deno.test("swap that is not encrypted is a warning for each", async () => {
  const two = mapped({
    ...{ "dm-0": ["CRYPT-LUKS2", "sda3"], "dm-1": ["LVM", "dm-0", "dm-2"], "dm-2": ["MPATH"] },
    "dm-9": ["LVM", "sda4"],
  });
  const swaps = ["/dev/sda2", "/dev/dm-1", "/dev/dm-9", "/dev/zram1"].map((it) =>
    `${it} partition`
  );
  const files = { ...two.files, "/sys/block/zram1/backing_dev": "/dev/sdb\n" };
  const findings = await findingsOfSwap([...swaps, "/dev/zram0 partition"], { files });
  assert.deepEqual(findings.map(({ level, subject }) => [level, subject]), [
    ...["/dev/sda2", "/dev/dm-1", "/dev/dm-9", "/dev/zram1"].map((path) => [
      "warning",
      `Swap is active and not encrypted: ${path}`,
    ]),
  ]);
  assert.match(findings[0]?.meaning ?? "", /its secrets too/);
  assert.match(findings[0]?.remedy ?? "", /^swapoff \/dev\/sda2 # .*crypttab/);
});

Deno.test("of a swap file, the doctor says what it is encrypted by", async () => {
  const [found, ...others] = await findingsOfSwap(["/swap\\040file file"]);
  assert.deepEqual(others, []);
  assert.match(
    found?.subject ?? "",
    /in the file \/swap file, which .* only where its file system/,
  );
  assert.match(found?.remedy ?? "", /^swapoff '\/swap file' # /);
});

Deno.test("AppArmor's profile for virt-aa-helper has to know the directory of disks", async () => {
  await using connection = await openTestHost();
  const profile = { [`/etc/apparmor.d/${HELPER}`]: "/var/lib/libvirt/images/** r,\n" };
  const files = { ...APPARMOR, ...profile };
  // The pool as prepare makes it, and before it does.
  for (const overlayPool of ["libvirt-gci", "not-yet"]) {
    await using host = await doctorHost({ connection, files, config: { overlayPool } });
    allOk(await checkSecurityModules(host));
  }

  const xml = "<pool type='dir'><name>own</name><target><path>/data/own</path></target></pool>";
  (await StoragePool.define(connection, "own", xml))[Symbol.dispose]();
  const config = { overlayPool: "own" };
  await using host = await doctorHost({ connection, files, config });
  const [, helper] = await checkSecurityModules(host);
  assert.equal(helper?.level, "warning");
  assert.match(helper?.meaning ?? "", /Could not open backing file/);
  assert.match(
    helper?.remedy ?? "",
    /^echo '"\/data\/own\/\*\*" r,' >> \/etc\/apparmor.d\/local\//,
  );

  const local = { [`/etc/apparmor.d/local/${HELPER}`]: '"/data/own/**" r,\n' };
  await using mended = await doctorHost({ connection, files: { ...files, ...local }, config });
  allOk(await checkSecurityModules(mended));
});

const FILE = "/etc/gitlab-runner/config.toml";
const TOML = String(HEALTHY[FILE]);

/** What the doctor finds in config.toml, after these texts have been replaced. */
async function findingsOf(
  replacements: Readonly<Record<string, string>>,
  files: Parameters<typeof doctorHost>[0] = {},
): Promise<Awaited<ReturnType<typeof checkRunner>>> {
  let toml = TOML;
  for (const [from, to] of Object.entries(replacements)) {
    assert.ok(toml.includes(from), from);
    toml = toml.replaceAll(from, to);
  }
  await using host = await doctorHost({ ...files, files: { ...files?.files, [FILE]: toml } });
  const findings = await checkRunner(host);
  assert.doesNotMatch(JSON.stringify(findings), /glrt-secret/);
  return findings;
}

const REGISTER = /^gitlab-runner register .* --custom-run-exec \/usr\/local\/bin\/libvirt-gci /;

Deno.test("the README registers a runner by the doctor's command", async () => {
  const readme = await Deno.readTextFile(new URL("../../README.md", import.meta.url));
  const [block = ""] = /^ *gitlab-runner register (.*\\\n)*.*$/m.exec(readme) ?? [];
  assert.equal(
    block.trim().replaceAll(/\\\n */g, ""),
    registerCommand("/usr/local/bin/libvirt-gci"),
  );
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
    await using host = await doctorHost({ program, files: { [FILE]: text } });
    const [found] = await checkRunner(host);
    assert.equal(found?.remedy, registerCommand(program));
  }
  assert.match(registerCommand(program), / --custom-config-exec '\/opt\/a b\/libvirt-gci' /);
});

Deno.test("run_args need no --script: run takes the script and its stage without", async () => {
  allOk(await findingsOf({ '["run", "--script"]': '["run"]' }));
});

Deno.test("a runner that calls another program is not ours to judge, and has no machine of ours", async () => {
  const other = `[[runners]]
    name = "other"
    executor = "custom"
    [runners.custom]
      prepare_exec = "/opt/other"
      run_exec = "/opt/other"`;
  const findings = await findingsOf({ "[[runners]]": `${other}\n[[runners]]\n  limit = 3` });
  allOk(findings);
  assert.deepEqual(findings.map(({ subject }) => subject), [
    'The runner "my-vm-host" calls libvirt-gci for each stage',
    "3 machines at once, of up to 2048 MiB, and the host has 16000 MiB",
  ]);
});

Deno.test("a runner that calls no program at all is told what to call", async () => {
  const findings = await findingsOf({ "_exec": "_exec = '' #" });
  const problems = findings.filter(({ level }) => level === "problem");
  assert.equal(problems.length, 4);
  for (const { remedy } of problems) assert.match(remedy ?? "", /_exec = "\/usr\/local\/bin\//);
});

Deno.test("a runner as the README has it is ok", async () => {
  const findings = await findingsOf({});
  allOk(findings);
  assert.deepEqual(findings.map(({ subject }) => subject), [
    'The runner "my-vm-host" calls libvirt-gci for each stage',
    "4 machines at once, of up to 2048 MiB, and the host has 16000 MiB",
  ]);
});

for (
  const [replacements, level, subject, remedy] of [
    [{ '"custom"': '"shell"' }, "warning", /No runner .* calls libvirt-gci/, REGISTER],
    [
      { "local/bin/libvirt-gci": "sbin/iptables" },
      "warning",
      /No runner .* calls libvirt-gci/,
      REGISTER,
    ],
    [{ "cleanup_exec": "#" }, "problem", /has no cleanup_exec/, /# cleanup_exec = /],
    [{ "prepare_exec": "#" }, "problem", /has no prepare_exec/, /# prepare_exec = /],
    [{ "run_exec": "#" }, "problem", /no run_exec/, /= "\/usr.*, run_args = \["run", "--script"\]/],
    [{ "config_exec": "#" }, "problem", /neither config_exec nor builds_dir/, /# config_exec/],
    [{ 'run_args = ["run", "--script"]': "" }, "problem", /run_args .* lack .* "run"/, /--script/],
    [
      { '["run", "--script"]': '["run --script"]' },
      "problem",
      /lack .* "run"/,
      /\["run", "--script"\]$/,
    ],
    [{ '["prepare"]': '["cleanup"]' }, "problem", /prepare_args .* lack/, /= \["prepare"\]/],
    [{ 'p_exec = "/usr': 'p_exec = "/opt' }, "problem", /cannot run "\/opt\/local/, /config.toml$/],
    [
      { "[runners.custom]": "[runners.custom]\ngraceful_kill_timeout = 10" },
      ...["warning", /graceful_kill_timeout 10$/, /= 30, or more/] as const,
    ],
    [
      { "[runners.custom]": "[runners.custom]\nforce_kill_timeout = 1" },
      ...["warning", /force_kill_timeout 1$/, /= 5, or more/] as const,
    ],
    [
      { "[runners.custom]": "[runners.custom]\ncleanup_exec_timeout = 5" },
      ...["warning", /cleanup_exec_timeout 5$/, /= 30, or more/] as const,
    ],
    [
      { "[runners.custom]": "[runners.custom]\nprepare_exec_timeout = 60" },
      ...["warning", /prepare_exec_timeout 60$/, /= 2100, or more/] as const,
    ],
    [{ "concurrent = 4": "concurrent = 8" }, "warning", /8 machines at once/, /# concurrent = 7$/],
    [{ "concurrent = 4": "concurrent = " }, "problem", /cannot read/, /config.toml$/],
    [{ 'token = "glrt-secret"': 'token = "glrt-secret' }, "problem", /cannot read/, /config.toml$/],
    [{ '["prepare"]': '"prepare"' }, "problem", /cannot read/, /config.toml$/],
  ] as const
) {
  const [text] = Object.values(replacements);
  Deno.test(`config.toml is a ${level} with ${Object.keys(replacements)} as ${text}`, async () => {
    const findings = await findingsOf(replacements);
    const found = only(findings.filter(({ level }) => level !== "ok"), level, subject);
    assert.match(found.remedy ?? "", remedy);
  });
}

Deno.test("a program of the runner that is not executable is a problem", async () => {
  const files = { "/usr/local/bin/libvirt-gci": { text: "", mode: 0o644 } };
  const findings = (await findingsOf({}, { files })).filter(({ level }) => level === "problem");
  assert.equal(findings.length, 4);
  assert.equal(findings[0]?.remedy, "chmod +x /usr/local/bin/libvirt-gci");
});

Deno.test("builds_dir and cache_dir take config_exec's place", async () => {
  const directories = 'executor = "custom"\nbuilds_dir = "/b"\ncache_dir = "/c"';
  allOk(await findingsOf({ "config_exec": "#", 'executor = "custom"': directories }));
});

Deno.test("limits of runners bound the memory, and the largest template counts", async () => {
  const limited = { "concurrent = 4": "concurrent = 99", 'name = "my-vm-host"': "limit = 7" };
  allOk(await findingsOf(limited));
  const config = parseConfig("templates: { giant: { memory_mib: 8192 } }", "x");
  const findings = await findingsOf({}, { config });
  only(findings.slice(1), "warning", /4 machines at once, of up to 8192 MiB/);
});

Deno.test("more jobs than max_machines would wait in prepare", async () => {
  const findings = await findingsOf({}, { config: parseConfig("max_machines: 3", "x") });
  const found = only(findings.slice(1), "warning", /4 jobs may come at once.*max_machines is 3/);
  assert.match(found.remedy ?? "", /# concurrent = 3$/);
  allOk(await findingsOf({}, { config: parseConfig("max_machines: 4", "x") }));
});

Deno.test("what becomes of jobs without memory depends on overcommit_memory", async () => {
  for (
    const [overcommit, meaning] of [[false, /jobs wait in prepare/], [true, /swaps/]] as const
  ) {
    const config = parseConfig(`memory_mib: 8192\novercommit_memory: ${overcommit}`, "x");
    const found = only((await findingsOf({}, { config })).slice(1), "warning", /8192 MiB/);
    assert.match(found.meaning ?? "", meaning);
  }
});

Deno.test("no config.toml is a warning", async () => {
  await using none = await doctorHost({ files: { [FILE]: undefined } });
  only(await checkRunner(none), "warning", /There is no \/etc\/gitlab-runner\/config.toml/);
});

Deno.test({
  name: "a config.toml that this user may not read is a warning",
  ignore: Deno.uid() === 0, // who may read all
  async fn() {
    await using host = await doctorHost({ files: { [FILE]: { text: TOML, mode: 0o000 } } });
    only(await checkRunner(host), "warning", /may not read/);
  },
});
