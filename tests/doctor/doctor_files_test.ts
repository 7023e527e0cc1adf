// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import {
  checkBridgeTracking,
  checkCapability,
  checkFilterPrograms,
  checkFilters,
  checkFirewall,
} from "../../src/doctor/filters.ts";
import type { Finding } from "../../src/doctor/finding.ts";
import { checkSwap, checkThreads } from "../../src/doctor/hardening.ts";
import { checkKeys } from "../../src/doctor/keys.ts";
import {
  checkEmulation,
  checkKvm,
  checkKvmDevice,
  checkNested,
  offerFinding,
} from "../../src/doctor/kvm.ts";
import { checkSecurityModules, confinesBy } from "../../src/doctor/security_modules.ts";
import { makeKeyPair } from "../../src/guest/key.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import {
  allOk,
  answerCalls,
  type HostDifferences,
  type HostTree,
  look,
  NO_LIBVIRT,
  only,
} from "../fakes/test_doctor.ts";

const BROKEN_KVM = { works: false, reason: "KVM starts but a guest's kernel never boots" } as const;

Deno.test("KVM that runs guests is ok", async () => {
  only(await look(checkKvm, { connection: NO_LIBVIRT }), "ok", /^KVM works$/);
});

Deno.test("KVM that runs no guest is a problem, and what to set instead has its price", async () => {
  const findings = await look(checkKvm, { kvm: () => Promise.resolve(BROKEN_KVM) });
  const { meaning, remedy } = only(findings, "problem", /KVM does not work/);
  assert.match(meaning, /never boots. With domain_type: kvm, machines hang or do not start/);
  assert.match(meaning, /domain_type: qemu works .*slow and, .*no security boundary/);
  assert.equal(remedy, null);
});

Deno.test("emulated machines are a warning, also those of a single template", async () => {
  assert.deepEqual(await look(checkEmulation), []);
  for (const yaml of ["domain_type: qemu", "templates: { old: { domain_type: qemu } }"]) {
    const found = only(await look(checkEmulation, { yaml }), "warning", /domain_type is qemu/);
    assert.match(found.meaning, /slow and, .*no security boundary/);
  }
});

Deno.test("without /dev/kvm, the remedy loads the module", async () => {
  const reason = "/dev/kvm does not exist";
  const files = { "/dev/kvm": undefined };
  const kvm = () => Promise.resolve({ works: null, reason });
  const { remedy } = only(await look(checkKvm, { kvm, files }), "problem", /KVM does not work/);
  assert.equal(remedy, "modprobe kvm_intel || modprobe kvm_amd");
  assert.deepEqual(await look(checkKvmDevice, { files }), []);
});

Deno.test("KVM that this user may not try is a warning", async () => {
  const kvm = () => Promise.resolve({ works: null, reason: "no permission on /dev/kvm" });
  const { meaning } = only(await look(checkKvm, { kvm }), "warning", /Cannot tell/);
  assert.match(meaning, /no permission/);
});

Deno.test("nobody asks for KVM where no machine uses it", async () => {
  const kvm = () => Promise.reject(new Error("asked"));
  assert.deepEqual(await look(checkKvm, { machine: { domainType: "qemu" }, kvm }), []);
});

Deno.test("KVM that works and libvirt does not offer is a problem", async () => {
  const offer = "<capabilities><guest><arch><domain type='kvm'/></arch></guest></capabilities>";
  only(offerFinding(offer), "ok", /KVM works/);
  const { remedy } = only(offerFinding("<capabilities/>"), "problem", /does not offer it/);
  // Of one daemon and of those that share its work, whichever run: none is begun beside another.
  assert.equal(remedy, "systemctl try-restart 'libvirtd.service*' 'virtqemud.service*'");
  only(await look(checkKvm), "problem", /libvirt does not offer it/);
});

Deno.test("/dev/kvm that QEMU's user may not open is a warning, by qemu.conf and groups", async () => {
  const closed = { "/dev/kvm": { text: "", mode: 0o660 }, "/etc/group": "" };
  const ownGroup = { "/etc/group": `kvm:x:${Deno.gid()}:\n` };
  const joined = { "/etc/group": `kvm:x:${Deno.gid()}:libvirt-qemu\n` };
  const root = { "/etc/libvirt/qemu.conf": 'user = "+0"\n' };
  for (const files of [{}, { ...closed, ...joined }, { ...closed, ...root }]) {
    only(await look(checkKvmDevice, { files }), "ok", /can open \/dev\/kvm/);
  }
  for (
    const [files, remedy] of [
      [{ ...closed, ...ownGroup }, "usermod --append --groups kvm libvirt-qemu"],
      [closed, "chown root:kvm /dev/kvm && chmod 660 /dev/kvm"],
    ] as const
  ) {
    const findings = await look(checkKvmDevice, { files });
    const found = only(findings, "warning", /user libvirt-qemu cannot open \/dev\/kvm/);
    assert.match(found.meaning, /13 s/);
    assert.equal(found.remedy, remedy);
  }
});

Deno.test("nested virtualisation that is off is told where the settings want it", async () => {
  const off = { "/sys/module/kvm_intel/parameters/nested": "0\n" };
  const none = { "/sys/module/kvm_intel/parameters/nested": undefined };
  const amd = { ...none, "/sys/module/kvm_amd/parameters/nested": "1\n" };
  assert.deepEqual(await look(checkNested, { files: off }), []);
  for (
    const [files, yaml, level] of [
      [{}, "nested: true", "ok"],
      [amd, "nested: true", "ok"],
      [off, "nested: true", "problem"],
      [off, "limits: {nested: true}", "warning"],
      [none, "rules: [{ limits: {nested: true} }]", "warning"],
    ] as const
  ) {
    only(await look(checkNested, { files, yaml }), level, /kvm_intel|kvm_amd/);
  }
});

const TRACKING = "/proc/sys/net/bridge/bridge-nf-call-iptables";

Deno.test("an isolated machine needs filters, ebtables, iptables and tracking", async () => {
  const files = { "/usr/sbin/ebtables": undefined, [TRACKING]: undefined };
  const [filters] = await look(checkFilters, { files });
  if (filters?.level !== "ok") { // libvirt's test driver has them since 10.0
    const { remedy } = only(filters ?? null, "problem", /does not support network filters/);
    assert.match(remedy ?? "", /^apt-get install libvirt-daemon-config-nwfilter && /);
  }
  const programs = await look(checkFilterPrograms, { files });
  const { remedy } = only(programs, "problem", /^The host has no ebtables$/);
  assert.equal(remedy, "apt-get install ebtables");
  const tracking = await look(checkBridgeTracking, { files });
  const found = only(tracking, "warning", /bridge-nf-call-iptables/);
  assert.match(found.meaning, /above 32767/);
  assert.match(found.remedy ?? "", /^modprobe br_netfilter && sysctl net.bridge/);
});

Deno.test("who has not the capability CAP_NET_ADMIN isolates machines by libvirt alone", async () => {
  const user = "Uid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\nGroups:\t106 \n";
  const having = (capabilities: string) => ({
    "/proc/self/status": `${user}CapEff:\t${capabilities}\n`,
    "/etc/passwd": "ci:x:7:7::/home/ci:/bin/sh\n",
  });
  const admin = await look(checkCapability, { files: having("0000000000001000") });
  only(admin, "ok", /^With CAP_NET_ADMIN/);
  const files = having("0000000000000000");
  const findings = await look(checkCapability, { files });
  const { meaning } = only(findings, "warning", /^ci lacks the capability/);
  assert.match(meaning, /link-local/);
  const dropIn = /as (\S+) does/.exec(meaning)?.[1] ?? "";
  assert.match(
    await Deno.readTextFile(new URL(`../../${dropIn}`, import.meta.url)),
    /^AmbientCapabilities=CAP_NET_ADMIN$/m,
  );
  assert.deepEqual(
    await look(checkCapability, { files, machine: { network: { isolate: false } } }),
    [],
  );
});

Deno.test("a host with all that isolation needs is ok", async () => {
  only(await look(checkFilterPrograms), "ok", /ebtables and iptables/);
  only(await look(checkBridgeTracking), "ok", /tracks/);
});

Deno.test("tracking that is switched off is a warning", async () => {
  const files = { [TRACKING]: "0\n" };
  only(await look(checkBridgeTracking, { files }), "warning", /is not 1/);
});

Deno.test("machines that are not isolated, or have no network, need none of it", async () => {
  const files = { "/usr/sbin/ebtables": undefined };
  for (const machine of [{ network: { isolate: false } }, { network: { name: "none" } }]) {
    for (const check of [checkFilters, checkFilterPrograms, checkBridgeTracking]) {
      assert.deepEqual(await look(check, { machine, files }), []);
    }
  }
});

Deno.test("the firewall's backend is told, and a problem without its program", async () => {
  const nftables = { "/etc/libvirt/network.conf": '#x = 1\nfirewall_backend = "nftables"\n' };
  const since = (virConnectGetLibVersion: bigint): HostDifferences => ({
    libvirt: (connection) => answerCalls(connection, { virConnectGetLibVersion }),
  });
  only(await look(checkFirewall, since(9_000_000n)), "ok", /uses iptables .*, as before 10.4/);
  only(await look(checkFirewall, since(10_004_000n)), "ok", /chooses/);
  const without = await look(checkFirewall, { files: nftables });
  const { remedy } = only(without, "problem", /nftables .* has no nft$/);
  assert.equal(remedy, "apt-get install nftables");
  const both = { ...nftables, "/usr/sbin/nft": "" };
  only(await look(checkFirewall, { files: both }), "ok", /uses nftables/);
});

const { privateKey } = await makeKeyPair();

function lookAtKey(key: string | null, files: HostTree): Promise<Finding[]> {
  return look(checkKeys, { machine: { ssh: { login: "template", key } }, files });
}

Deno.test("a key that only its owner may read is ok", async () => {
  const files = { "/etc/key": { text: privateKey, mode: 0o600 } };
  only(await lookAtKey("/etc/key", files), "ok", /\/etc\/key is usable/);
});

Deno.test("a key that others may read is a warning", async () => {
  const files = { "/root/key": { text: privateKey, mode: 0o640 } };
  const findings = await lookAtKey("~/key", files);
  const { remedy } = only(findings, "warning", /Other users can read .*\/root\/key/);
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
    const files = text === null ? {} : { "/etc/key": { text, mode: 0o600 } };
    const subject = key === null ? /^No SSH key/ : /^Cannot use/;
    const found = only(await lookAtKey(key, files), "problem", subject);
    assert.match(found.meaning, /Jobs cannot start if their template has "ssh\.login: template"$/);
    assert.equal(found.remedy, remedy);
  }
});

async function encryptedKey(): Promise<string> {
  const { utils } = (await import("ssh2")).default;
  const options = { bits: 2048, passphrase: "secret", cipher: "aes256-cbc" };
  return utils.generateKeyPairSync("rsa", options).private;
}

Deno.test("machines with keys of their own need none", async () => {
  assert.deepEqual(await look(checkKeys), []);
});

const ENABLED = "/sys/module/apparmor/parameters/enabled";
const APPARMOR = { [ENABLED]: "Y\n" };
const SELINUX = { [ENABLED]: undefined, "/sys/fs/selinux/enforce": "1" };
const HELPER = "usr.lib.libvirt.virt-aa-helper";

Deno.test("the security module is told, with where it logs", async () => {
  const mounted = { [ENABLED]: "N\n", "/sys/kernel/security/apparmor": null };
  for (
    const [files, words] of [
      [APPARMOR, /AppArmor confines machines\. .*journalctl -k/],
      [mounted, /AppArmor confines machines/],
      [SELINUX, /SELinux confines machines\. .*ausearch -m AVC/],
    ] as const
  ) {
    only(await look(checkSecurityModules, { files }), "ok", words);
  }
});

Deno.test("a host without a security module, or with one that only logs, is a warning", async () => {
  const permissive = { ...SELINUX, "/sys/fs/selinux/enforce": "0" };
  for (
    const [files, words, remedy] of [
      [{ [ENABLED]: undefined }, /^Neither AppArmor nor SELinux/, /^apt-get install apparmor # /],
      [{ [ENABLED]: "N\n" }, /^Neither AppArmor nor SELinux/, /^apt-get install apparmor # /],
      [permissive, /SELinux is permissive/, /^setenforce 1 /],
    ] as const
  ) {
    const found = only(await look(checkSecurityModules, { files }), "warning", words);
    assert.match(found.meaning, /breaks out of QEMU/);
    assert.match(found.remedy ?? "", remedy);
  }
});

function capabilitiesWith(...models: readonly string[]): string {
  const elements = models.map((model) =>
    `<secmodel><model>${model}</model><doi>0</doi></secmodel>`
  );
  return `<capabilities><host>${elements.join("")}</host>` +
    "<guest><model>apparmor</model></guest></capabilities>";
}

Deno.test("libvirt itself says whether it uses the security module", () => {
  assert(confinesBy("apparmor", capabilitiesWith("apparmor", "dac")));
  assert(!confinesBy("selinux", capabilitiesWith("apparmor", "dac")));
  assert(!confinesBy("apparmor", capabilitiesWith("none", "dac")));
  assert(
    confinesBy("apparmor", capabilitiesWith("testSecurity")),
    "libvirt's test driver has none",
  );
});

Deno.test("a security module that libvirt is not to use, or did not find, is a warning", async () => {
  const conf = { "/etc/libvirt/qemu.conf": 'security_driver = [ "none" ]\n' };
  const virConnectGetCapabilities = capabilitiesWith("none", "dac");
  const libvirt: HostDifferences["libvirt"] = (connection) =>
    answerCalls(connection, { virConnectGetCapabilities });
  for (const files of [APPARMOR, SELINUX]) {
    const told = await look(checkSecurityModules, { files: { ...files, ...conf } });
    only(told, "warning", /security_driver is none/);
    const late = await look(checkSecurityModules, { files, libvirt });
    const { remedy } = only(late, "warning", /was not active when libvirt started/);
    assert.match(remedy ?? "", /try-restart 'libvirtd.service\*'/);
  }
});

const SMT = "/sys/devices/system/cpu/smt/active";
const QEMU_CONF = "/etc/libvirt/qemu.conf";
const CORES: HostTree = { [SMT]: "1\n", "/proc/sys/kernel/osrelease": "6.1.0-1\n" };

Deno.test("SMT without core scheduling is a warning", async () => {
  for (
    const files of [
      { [SMT]: "0\n" },
      { [SMT]: undefined },
      { ...CORES, [QEMU_CONF]: '#sched_core = "none"\nsched_core = "full"\n' },
      { ...CORES, [QEMU_CONF]: 'sched_core = "vcpus"\n' },
    ]
  ) {
    only(await look(checkThreads, { files }), "ok", /^Machines do not share CPU cores/);
  }
  for (const conf of ['#sched_core = "full"\n', 'sched_core = "none"\n', undefined]) {
    const findings = await look(checkThreads, { files: { ...CORES, [QEMU_CONF]: conf } });
    const found = only(findings, "warning", /^SMT is on, and machines share/);
    assert.match(found.meaning, /caches of a core/);
    assert.match(found.remedy ?? "", /^echo off > \/sys\/devices\/system\/cpu\/smt\/control # /);
  }
});

Deno.test("core scheduling is advised where libvirt and the kernel have it", async () => {
  const remedyOf = async (virConnectGetLibVersion: bigint, kernel: string | undefined) => {
    const files = { ...CORES, "/boot/config-6.1.0-1": kernel };
    const libvirt: HostDifferences["libvirt"] = (it) =>
      answerCalls(it, { virConnectGetLibVersion });
    return only(await look(checkThreads, { files, libvirt }), "warning", /^SMT is on/).remedy ?? "";
  };
  const knows = "CONFIG_SCHED_CORE=y\n";
  assert.equal(
    await remedyOf(9_000_000n, knows),
    "sed -i '/^ *sched_core/d' /etc/libvirt/qemu.conf && " +
      "echo 'sched_core = \"full\"' >> /etc/libvirt/qemu.conf && " +
      "systemctl try-restart 'libvirtd.service*' 'virtqemud.service*'",
  );
  assert.match(await remedyOf(8_008_000n, knows), /^echo off/);
  // With a kernel that lacks it, libvirt does not start.
  assert.match(await remedyOf(9_000_000n, "# CONFIG_SCHED_CORE is not set\n"), /^echo off/);
  assert.match(await remedyOf(9_000_000n, undefined), /^echo off/);
});

Deno.test({
  name: "SMT with a qemu.conf that this user may not read is a warning that says so",
  ignore: Deno.uid() === 0, // who may read all
  async fn() {
    const files = { ...CORES, [QEMU_CONF]: { text: 'sched_core = "full"\n', mode: 0o000 } };
    only(await look(checkThreads, { files }), "warning", /cannot read .*qemu.conf/);
  },
});

/** What the doctor finds where these swap spaces are in use: partitions, unless a kind is given. */
function lookAtSwap(swaps: readonly string[], files: HostTree = {}): Promise<Finding[]> {
  const lines = swaps.map((swap) => {
    const [path, kind = "partition"] = swap.split(" ");
    return `${path}\t\t\t${kind}\t1000\t\t0\t\t-2\n`;
  });
  const text = `Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n${lines.join("")}`;
  return look(checkSwap, { files: { ...files, "/proc/swaps": text } });
}

/** Mapped devices: the kind of each, and what it stands on. */
function mapped(devices: Readonly<Record<string, readonly [kind: string, ...on: string[]]>>) {
  const files: Record<string, string | null> = {};
  for (const [device, [kind, ...on]] of Object.entries(devices)) {
    files[`/sys/block/${device}/dm/uuid`] = `${kind}-0123456789abcdef\n`;
    for (const below of on) files[`/sys/block/${device}/slaves/${below}`] = null;
  }
  return files;
}

Deno.test("without swap, or with swap that nobody can read later, all is well", async () => {
  only(await lookAtSwap([]), "ok", /^No swap is active$/);
  for (
    const [device, files] of [
      ["/dev/zram0", {}],
      ["/dev/zram0", { "/sys/block/zram0/backing_dev": "none\n" }],
      ["/dev/dm-3", mapped({ "dm-3": ["CRYPT-PLAIN", "sda2"] })],
      ["/dev/dm-1", mapped({ "dm-1": ["LVM", "dm-0"], "dm-0": ["CRYPT-LUKS2", "sda3"] })],
    ] as const
  ) {
    only(await lookAtSwap([device], files), "ok", /^All swap is encrypted, or stays in memory$/);
  }
});

Deno.test("swap that is not encrypted is a warning for each", async () => {
  const files = mapped({
    "dm-0": ["CRYPT-LUKS2", "sda3"],
    "dm-1": ["LVM", "dm-0", "dm-2"],
    "dm-2": ["MPATH"],
    "dm-9": ["LVM", "sda4"],
  });
  files["/sys/block/zram1/backing_dev"] = "/dev/sdb\n";
  const open = ["/dev/sda2", "/dev/dm-1", "/dev/dm-9", "/dev/zram1"];
  const findings = await lookAtSwap(open.concat("/dev/zram0"), files);
  assert.deepEqual(
    findings.map(({ level, subject }) => `${level}: ${subject}`),
    open.map((path) => `warning: The swap on ${path} is not encrypted`),
  );
  assert.match(findings[0]?.meaning ?? "", /including secrets/);
  assert.match(findings[0]?.remedy ?? "", /^swapoff \/dev\/sda2 # .*crypttab/);
});

Deno.test("of a swap file, the doctor says what it is encrypted by", async () => {
  const findings = await lookAtSwap(["/swap\\040file file"]);
  const subject = /The swap file \/swap file is .* only if its file system/;
  assert.match(only(findings, "warning", subject).remedy ?? "", /^swapoff '\/swap file' # /);
});

Deno.test("AppArmor's profile for virt-aa-helper has to know the directory of disks", async () => {
  const profile = { [`/etc/apparmor.d/${HELPER}`]: "/var/lib/libvirt/images/** r,\n" };
  const files = { ...APPARMOR, ...profile };
  // The pool as prepare makes it, and before it does.
  for (const overlays of ["libvirt-gci", "not-yet"]) {
    allOk(await look(checkSecurityModules, { files, config: { pools: { overlays } } }));
  }

  const xml = "<pool type='dir'><name>own</name><target><path>/data/own</path></target></pool>";
  const own: HostDifferences = {
    libvirt: async (connection) =>
      (await StoragePool.define(connection, "own", xml))[Symbol.dispose](),
    config: { pools: { overlays: "own" } },
  };
  const [, helper] = await look(checkSecurityModules, { ...own, files });
  assert.equal(helper?.level, "warning");
  assert.match(helper?.meaning ?? "", /Could not open backing file/);
  assert.match(
    helper?.remedy ?? "",
    /^echo '"\/data\/own\/\*\*" r,' >> \/etc\/apparmor.d\/local\//,
  );

  const local = { [`/etc/apparmor.d/local/${HELPER}`]: '"/data/own/**" r,\n' };
  allOk(await look(checkSecurityModules, { ...own, files: { ...files, ...local } }));
});
