// SPDX-License-Identifier: GPL-2.0-or-later
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import assert from "node:assert/strict";
import { fileSystemSpace } from "../../ffi/proc.ts";
import { poolPath } from "../../src/shell.ts";
import { DEFAULT_CONFIG, parseConfig } from "../../src/settings/load.ts";
import type { HostDomain } from "../../src/doctor/check.ts";
import { networkFindings } from "../../src/doctor/network_xml.ts";
import { checkNetworks, startFindings } from "../../src/doctor/networks.ts";
import { checkOverlayPool, checkTemplatePool } from "../../src/doctor/storage.ts";
import { checkTemplates } from "../../src/doctor/templates.ts";
import { checkWarmImages } from "../../src/doctor/warm_check.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { sleep } from "../../src/wait.ts";
import { allOk, doctorHost, only } from "../fakes/test_doctor.ts";
import { openTestHost } from "../fakes/test_host.ts";

const TEMPLATES = "/var/lib/libvirt/base_imgs";
/** Where prepare makes the pool that the test host has. */
const OVERLAYS = poolPath("libvirt-gci");

Deno.test("pools that are active and have space are ok, with their file system", async () => {
  await using connection = await openTestHost();
  await using host = await doctorHost({ connection });
  const templates = await checkTemplatePool(host);
  only(templates, "ok", /"base_imgs": 94 of 100 GiB free \(94 %\) in \/.*base_imgs \(xfs\)$/);
  const [overlays, owner] = await checkOverlayPool(host);
  assert.match(overlays?.subject ?? "", /"libvirt-gci": 99 of 100 GiB free/);
  assert.match(owner?.subject ?? "", /^Nobody else may write to/);
  allOk(await checkOverlayPool(host));
});

Deno.test("a pool that is missing is a problem, but for the one that the first job makes", async () => {
  await using connection = await openTestHost();
  await using host = await doctorHost({
    connection,
    config: { templatePool: "no such", overlayPool: "none" },
  });
  const { remedy } = only(await checkTemplatePool(host), "problem", /no storage pool "no such"/);
  assert.match(
    remedy ?? "",
    /pool-define-as 'no such' dir .* && virsh .* pool-autostart 'no such'$/,
  );
  const { meaning } = only(await checkOverlayPool(host), "problem", /no storage pool "none"/);
  assert.match(meaning, /set overlay_pool/);

  await using bare = await openHostWithout("libvirt-gci");
  const fresh = { ...host, connection: bare, config: DEFAULT_CONFIG };
  only(await checkOverlayPool(fresh), "ok", /"libvirt-gci" is made by the first job/);
});

Deno.test("a pool for machines' disks that has no files is a problem", async () => {
  await using connection = await openTestHost();
  const xml = "<pool type='logical'><name>vg0</name><target><path>/dev/vg0</path></target></pool>";
  {
    using pool = await StoragePool.define(connection, "vg0", xml);
    await pool.buildAndStart();
  }
  await using host = await doctorHost({ connection, config: { overlayPool: "vg0" } });
  only(await checkOverlayPool(host), "problem", /"vg0" is of the type logical/);
});

Deno.test("a pool that is not active is a problem, and no autostart a warning", async () => {
  await using connection = await openTestHost();
  const xml = "<pool type='dir'><name>idle</name><target><path>/idle</path></target></pool>";
  (await StoragePool.define(connection, "idle", xml))[Symbol.dispose]();
  await using host = await doctorHost({
    connection,
    config: { overlayPool: "idle" },
    facts: { poolAutostarts: () => Promise.resolve(false) },
  });
  const [inactive, autostart] = await checkOverlayPool(host);
  assert.equal(inactive?.level, "problem");
  assert.equal(inactive?.remedy, "virsh -c qemu:///system pool-start idle");
  assert.equal(autostart?.level, "warning");
  assert.equal(autostart?.remedy, "virsh -c qemu:///system pool-autostart idle");
});

for (
  const [gib, level, space] of [
    [83, "ok", "16 of 100 GiB free (16 %)"],
    [86, "warning", "13 of 100 GiB free (13 %)"],
    [95, "problem", "4.0 of 100 GiB free (4 %)"],
  ] as const
) {
  Deno.test(`a pool with ${space} is a finding of the level ${level}`, async () => {
    await using connection = await openTestHost();
    await using host = await doctorHost({
      connection,
      files: { [OVERLAYS]: undefined },
    });
    await fill(connection, gib);
    assert.ok(only(await checkOverlayPool(host), level, /libvirt-gci/).subject.includes(space));
  });
}

for (
  const [gib, level, space] of [
    [84, "ok", "10 of 100 GiB free (10 %)"],
    [92, "warning", "2.0 of 100 GiB free (2 %)"],
  ] as const
) {
  Deno.test(`a pool of templates, which do not grow, with ${space} is ${level}`, async () => {
    await using connection = await openTestHost();
    await using host = await doctorHost({ connection });
    await fill(connection, gib, "base_imgs");
    assert.ok(only(await checkTemplatePool(host), level, /base_imgs/).subject.includes(space));
  });
}

Deno.test("the space of a pool on this host is what its file system has now", async () => {
  const path = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  await using connection = await openTestHost();
  const xml = `<pool type="dir"><name>here</name><target><path>${path}</path></target></pool>`;
  {
    using pool = await StoragePool.define(connection, "here", xml);
    await pool.buildAndStart();
  }
  await using host = await doctorHost({ connection, config: { templatePool: "here" } });
  const [{ subject } = { subject: "" }] = await checkTemplatePool(host);
  const total = fileSystemSpace(path)?.total ?? NaN;
  await Deno.remove(path);
  const gib = (total / 1024 ** 3).toFixed(total < 10 * 1024 ** 3 ? 1 : 0);
  assert(subject.includes(` of ${gib} GiB free `), `${gib} GiB: ${subject}`);
});

for (
  const [gib, level] of [
    [21, "warning"],
    [19, "problem"],
  ] as const
) {
  Deno.test(`a large pool of disks that is almost full, with ${gib} GiB free, is a ${level}`, async () => {
    await using connection = await openTestHost();
    await using host = await doctorHost({ connection });
    const bytes = `<capacity>${1024 ** 4}</capacity><available>${gib * 1024 ** 3}</available>`;
    const xml = `<pool type="dir">${bytes}<target><path>/nonexistent</path></target></pool>`;
    const { callForString } = connection;
    // Pools of the test driver have 100 GiB.
    connection.callForString = ((...args: Parameters<typeof callForString>) =>
      args[0] === "virStoragePoolGetXMLDesc"
        ? Promise.resolve(xml)
        : callForString.apply(connection, args)) as typeof callForString;
    const space = `${gib} of 1024 GiB free`;
    assert.ok(only(await checkOverlayPool(host), level, /little space/).subject.includes(space));
  });
}

async function fill(connection: Connection, gib: number, name = "libvirt-gci"): Promise<void> {
  using pool = await StoragePool.lookup(connection, name);
  const size = `<capacity unit="GiB">${gib}</capacity><allocation unit="GiB">${gib}</allocation>`;
  using _ = await pool.createVolume("big", `<volume><name>big</name>${size}</volume>`);
}

Deno.test("a directory of disks that others may write to is a problem", async () => {
  await using connection = await openTestHost();
  await using host = await doctorHost({
    connection,
    files: { [OVERLAYS]: { text: null, mode: 0o775 } },
  });
  const [, owner] = await checkOverlayPool(host);
  assert.equal(owner?.level, "problem");
  assert.match(owner?.meaning ?? "", /exchange the disks/);
  assert.equal(owner?.remedy, `chown root ${OVERLAYS} && chmod go-w ${OVERLAYS}`);
});

const NETWORK = {
  bridge: "<bridge name='virbr0' stp='off' delay='0'/>",
  ip: (dhcp: string) => `<ip address='10.0.0.1' netmask='255.255.255.0'>${dhcp}</ip>`,
  dhcp: "<dhcp><range start='10.0.0.2' end='10.0.0.254'/></dhcp>",
  options: "<dnsmasq:options><dnsmasq:option value='no-ping'/></dnsmasq:options>",
};

function networkXml(differences: Partial<typeof NETWORK> = {}): string {
  const { bridge, ip, dhcp, options } = { ...NETWORK, ...differences };
  const namespace = "xmlns:dnsmasq='http://libvirt.org/schemas/network/dnsmasq/1.0'";
  return `<network ${namespace}><name>n</name><forward mode='nat'/>${bridge}${
    ip(dhcp)
  }${options}</network>`;
}

const N = { config: DEFAULT_CONFIG, name: "n" };

Deno.test("a network that costs machines no time is ok", () => {
  only(networkFindings(networkXml(), N), "ok", /"n" has 253 addresses, leased for 60 min/);
});

Deno.test("STP is a warning that says how long each machine waits", () => {
  for (
    const [bridge, seconds] of [
      ["<bridge name='virbr0' stp='on' delay='15'/>", 30],
      ["<bridge name='virbr0' stp='on' delay='0'/>", 4],
      ["<bridge name='virbr0'/>", 4],
    ] as const
  ) {
    const [stp, ...others] = networkFindings(networkXml({ bridge }), N);
    allOk(others);
    assert.equal(stp?.level, "warning");
    assert.match(stp?.meaning ?? "", new RegExp(`waits ${seconds} s`));
    assert.match(stp?.remedy ?? "", /net-edit n # at <bridge>, set stp='off' delay='0'\n/);
  }
});

Deno.test("a delay without STP costs nothing", () => {
  const bridge = "<bridge name='virbr0' stp='off' delay='15'/>";
  allOk(networkFindings(networkXml({ bridge }), N));
});

/** Settings with machines in the network "n". */
function inN(isolate: boolean): typeof N {
  const machine = { ...DEFAULT_CONFIG.machine, network: "n", isolate };
  return { name: "n", config: { ...DEFAULT_CONFIG, machine } };
}

Deno.test("dnsmasq without no-ping is a warning, unless it has no address to choose", () => {
  for (const options of ["", NETWORK.options.replace("no-ping", "log-dhcp")]) {
    const [range, ping, ...others] = networkFindings(networkXml({ options }), inN(false));
    allOk([range ?? assert.fail(), ...others]);
    assert.equal(ping?.level, "warning");
    assert.match(ping?.meaning ?? "", /3 s/);
    assert.match(ping?.remedy ?? "", /<dnsmasq:option value='no-ping'\/>/);
    allOk(networkFindings(networkXml({ options }), inN(true)));
  }
});

Deno.test("a network without DHCP is a problem", () => {
  const { remedy } = only(networkFindings(networkXml({ dhcp: "" }), N), "problem", /has no DHCP/);
  assert.match(remedy ?? "", /into <ip>, put <dhcp>/);
  const ipv6 = "<ip family='ipv6' address='fd00::1' prefix='64'><dhcp/></ip>";
  only(networkFindings(networkXml({ ip: () => ipv6 }), N), "problem", /has no DHCP/);
});

Deno.test("a range that throw-away machines use up is a warning", () => {
  const range = (end: string, lease: string, isolate = false) =>
    networkFindings(
      networkXml({ dhcp: `<dhcp><range start='10.0.0.2' end='${end}'>${lease}</range></dhcp>` }),
      inN(isolate),
    );
  only(range("10.0.0.254", "<lease expiry='0'/>", true), "ok", /leased for ever/);
  only(range("10.0.0.16", "", true), "warning", /has 15 addresses/);
  only(range("10.0.0.16", ""), "warning", /has 15 addresses/);
  only(range("10.0.0.254", "<lease expiry='24' unit='hours'/>"), "warning", /leased for 24 h/);
  only(range("10.0.0.254", "<lease expiry='0'/>"), "warning", /leased for ever/);
  only(range("10.0.0.17", "<lease expiry='600' unit='seconds'/>"), "ok", /16 .* for 10 min/);
  only(range("10.0.3.254", "<lease expiry='24' unit='hours'/>"), "ok", /1021 addresses/);
});

Deno.test("a network on a bridge of somebody else's is a warning", () => {
  const xml = "<network><name>n</name><forward mode='bridge'/><bridge name='br0'/></network>";
  only(networkFindings(xml, N), "warning", /serves no addresses/);
});

Deno.test("each network that the settings name is looked at, and none that is missing passes", async () => {
  await using connection = await openTestHost();
  const yaml = "templates:\n  a: { network: elsewhere }\n  b: { network: none }\n";
  await using host = await doctorHost({ connection, config: parseConfig(yaml, "x") });
  const findings = await checkNetworks(host);
  assert(findings.some(({ level, subject }) => level === "ok" && /"default"/.test(subject)));
  const missing = findings.filter(({ level }) => level === "problem");
  assert.match(only(missing, "problem", /no network "elsewhere"/).remedy ?? "", /net-list --all$/);

  await using bare = await openHostWithout("default");
  const fresh = { ...host, connection: bare, config: DEFAULT_CONFIG };
  const { remedy } = only(await checkNetworks(fresh), "problem", /no network "default"/);
  assert.match(remedy ?? "", /net-define .*default.xml && virsh .* net-start default$/);
});

Deno.test("machines without a network need none", async () => {
  await using connection = await openHostWithout("default");
  await using host = await doctorHost({ connection, machine: { network: "none" } });
  assert.deepEqual(await checkNetworks(host), []);
});

Deno.test("a network that is not active is a problem, and no autostart a warning", () => {
  const found = startFindings("n", { isActive: false, autostarts: false }, N);
  assert.deepEqual(found.map(({ level, remedy }) => [level, remedy]), [
    ["problem", "virsh -c qemu:///system net-start n"],
    ["warning", "virsh -c qemu:///system net-autostart n"],
  ]);
  only(startFindings("n", { isActive: true, autostarts: true }, N), "ok", /"n" is active/);
});

Deno.test("each template is told with its format, its size and its machines", async () => {
  await using connection = await openTestHost();
  await using host = await doctorHost({ connection });
  await createVolume(connection, "libvirt-gci", {
    name: "m.overlay.libvirt-gci",
    backing: `${TEMPLATES}/debian-12.qcow2`,
  });
  const findings = await checkTemplates(host);
  assert.deepEqual(findings.map(({ subject }) => subject), [
    'The template "debian-12.qcow2": qcow2, 4 GiB; 1 machine stands on it',
    'The template "old-name": raw, 2 GiB; 0 machines stand on it',
  ]);
  allOk(findings);
});

Deno.test("a template that the settings name and nobody made is a problem", async () => {
  await using connection = await openTestHost();
  const yaml = "default_template: fedora\ntemplates: { x: { volume: x-v3 }, debian-12: {} }";
  await using host = await doctorHost({ connection, config: parseConfig(yaml, "x") });
  const missing = (await checkTemplates(host)).filter(({ level }) => level !== "ok");
  assert.deepEqual(missing.map(({ level, subject }) => [level, subject]), [
    ["problem", 'The settings name the template "x", and it is not there'],
    ["problem", 'The settings name the template "fedora", and it is not there'],
  ]);
  assert.match(missing[0]?.meaning ?? "", /no volume "x-v3"$/);
  assert.match(missing[0]?.remedy ?? "", /pool-refresh base_imgs && virsh .* vol-list base_imgs$/);
});

Deno.test("a pool without templates is a problem", async () => {
  await using connection = await openTestHost();
  await using host = await doctorHost({ connection });
  using pool = await StoragePool.lookup(connection, "base_imgs");
  for (const name of await pool.volumeNames()) {
    using volume = await pool.lookupVolume(name);
    await volume.delete();
  }
  only(await checkTemplates(host), "problem", /"base_imgs" has no template/);
});

Deno.test("a template that is neither qcow2 nor raw is a warning, and a directory is no template", async () => {
  await using connection = await openTestHost();
  await using host = await doctorHost({ connection });
  await createVolume(connection, "base_imgs", { name: "win.vmdk", format: "vmdk" });
  await createVolume(connection, "base_imgs", { name: "lost+found", format: "dir" });
  const found = (await checkTemplates(host)).filter(({ level }) => level !== "ok");
  const { remedy } = only(found, "warning", /"win.vmdk" has the format vmdk/);
  const path = `${TEMPLATES}/win.vmdk`;
  assert.equal(remedy, `qemu-img convert -O qcow2 ${path} ${path}.qcow2`);
});

Deno.test("a template that stands on a file is a problem only without that file", async () => {
  await using connection = await openTestHost();
  await using host = await doctorHost({ connection });
  await createVolume(connection, "base_imgs", { name: "top.qcow2", backing: "/srv/base.img" });
  const found = (await checkTemplates(host)).filter(({ level }) => level !== "ok");
  only(found, "problem", /"top.qcow2" stands on \/srv\/base.img, which is not there/);

  await using whole = await doctorHost({ connection, files: { "/srv/base.img": "" } });
  allOk(await checkTemplates(whole));
});

Deno.test(
  "a template that somebody wrote to after a disk was made on it is a warning, a new one is not",
  { ignore: Deno.statSync("/tmp").birthtime === null },
  async () => {
    await using connection = await openTestHost();
    const path = `${TEMPLATES}/debian-12.qcow2`;
    const disk = `${OVERLAYS}/m.overlay.libvirt-gci`;
    await using host = await doctorHost({ connection, files: { [path]: "" } });
    await createVolume(connection, "libvirt-gci", {
      name: "m.overlay.libvirt-gci",
      backing: path,
    });
    const clockTick = 20; // the kernel's times of files are that coarse
    await sleep(clockTick);
    await Deno.writeTextFile(host.root + disk, "");
    allOk(await checkTemplates(host));

    await sleep(clockTick);
    await Deno.writeTextFile(host.root + path, "by hand");
    const found = (await checkTemplates(host)).filter(({ level }) => level !== "ok");
    const { meaning } = only(found, "warning", /wrote to the template "debian-12.qcow2" while/);
    assert.match(meaning, /^\/var.*debian-12.qcow2 is newer than the disks of 1 of them/);

    await Deno.writeTextFile(`${host.root}${path}.new`, "a new version");
    await Deno.rename(`${host.root}${path}.new`, host.root + path);
    allOk(await checkTemplates(host));
  },
);

const DISK = { type: "file", source: `file="${TEMPLATES}/debian-12.qcow2"`, more: "" };

Deno.test("a domain whose disk is a template's is a problem, running or not", async () => {
  await using connection = await openTestHost();
  for (
    const disk of [
      DISK,
      { ...DISK, type: "volume", source: 'pool="base_imgs" volume="debian-12.qcow2"' },
    ]
  ) {
    for (const isActive of [true, false]) {
      const domains = [{ ...await startDomain(connection, disk), isActive }];
      await using host = await doctorHost({
        connection,
        facts: { domains: () => Promise.resolve(domains) },
      });
      const found = (await checkTemplates(host)).filter(({ level }) => level !== "ok");
      const { subject, meaning, remedy } = only(found, "problem", /debian-12.*the domain "vm"/);
      assert.equal(/which runs$/.test(subject), isActive);
      assert.match(meaning, /corrupts each machine that is made from it/);
      assert.equal(remedy, `virsh -c qemu:///system ${isActive ? "shutdown" : "edit"} vm`);
    }
  }
});

Deno.test("a domain that writes to what a template stands on is a problem too", async () => {
  await using connection = await openTestHost();
  await createVolume(connection, "base_imgs", {
    name: "top.qcow2",
    backing: `${TEMPLATES}/debian-12.qcow2`,
  });
  for (const name of ["a", "b"]) {
    await createVolume(connection, "libvirt-gci", {
      name: `${name}.overlay.libvirt-gci`,
      backing: `${TEMPLATES}/top.qcow2`,
    });
  }
  const domains = [await startDomain(connection, DISK)];
  await using host = await doctorHost({
    connection,
    files: { [`${TEMPLATES}/debian-12.qcow2`]: "" },
    facts: { domains: () => Promise.resolve(domains) },
  });
  const found = (await checkTemplates(host)).filter(({ subject }) => /"top.qcow2"/.test(subject));
  assert.match(only(found, "problem", /domain "vm"/).meaning, /corrupts the 2 that stand on it/);
});

Deno.test("a machine of ours, and a disk that is only read, harm no template", async () => {
  await using connection = await openTestHost();
  for (
    const disk of [
      { ...DISK, more: "<readonly/>" },
      {
        ...DISK,
        source: `file="${OVERLAYS}/m.overlay.libvirt-gci"`,
        more: `<backingStore type="file"><format type="qcow2"/><source ${DISK.source}/>` +
          "</backingStore>",
      },
    ]
  ) {
    const domains = [await startDomain(connection, disk)];
    await using host = await doctorHost({
      connection,
      facts: { domains: () => Promise.resolve(domains) },
    });
    allOk(await checkTemplates(host));
  }
});

Deno.test("a template that is larger than max_disk_gib is a problem", async () => {
  await using connection = await openTestHost();
  const yaml = "max_disk_gib: 3\ndisk_gib: 3\ntemplates: { old: { volume: old-name } }";
  await using host = await doctorHost({ connection, config: parseConfig(yaml, "x") });
  const found = (await checkTemplates(host)).filter(({ level }) => level !== "ok");
  only(found, "problem", /"debian-12.qcow2" has 4 GiB, and max_disk_gib is 3/);

  const own = "max_disk_gib: 3\ndisk_gib: 3\ntemplates: { debian-12: { max_disk_gib: 9 } }";
  await using other = await doctorHost({ connection, config: parseConfig(own, "x") });
  only(
    (await checkTemplates(other)).filter(({ level }) => level !== "ok"),
    "problem",
    /"debian-12.qcow2" has 4 GiB, and max_disk_gib is 3/,
  );
  const ruled = `${yaml}\nrules: [{ max_disk_gib: 9 }]`;
  await using third = await doctorHost({ connection, config: parseConfig(ruled, "x") });
  only((await checkTemplates(third)).filter(({ level }) => level !== "ok"), "warning", /has 4 GiB/);
});

async function createVolume(
  connection: Connection,
  poolName: string,
  { name, backing, format = "qcow2" }: {
    readonly name: string;
    readonly backing?: string;
    readonly format?: string;
  },
): Promise<void> {
  using pool = await StoragePool.lookup(connection, poolName);
  const below = backing === undefined ? "" : `<backingStore><path>${backing}</path></backingStore>`;
  const xml = `<volume><name>${name}</name><capacity unit="GiB">1</capacity>` +
    `<target><format type="${format}"/></target>${below}</volume>`;
  using _ = await pool.createVolume(name, xml);
}

/** A domain with this disk, as libvirt describes it. It does not stay. */
async function startDomain(
  connection: Connection,
  { type, source, more }: typeof DISK,
): Promise<HostDomain> {
  const xml = `
    <domain type="test">
      <name>vm</name><memory>65536</memory><os><type>hvm</type></os>
      <devices>
        <disk type="${type}"><source ${source}/><target dev="vda"/>${more}</disk>
      </devices>
    </domain>
  `;
  using domain = await Domain.create(connection, "vm", xml, 0);
  const described = { name: "vm", isActive: true, xml: await domain.xml() };
  await domain.destroy();
  return described;
}

/** The test host without the network, or the pool, of this name. */
async function openHostWithout(name: string): Promise<Connection> {
  const text = await Deno.readTextFile(new URL("../data/host.xml", import.meta.url));
  const file = await Deno.makeTempFile({ prefix: "libvirt-gci-test-", suffix: ".xml" });
  try {
    const part = new RegExp(`<(network|pool)[^>]*>\\s*<name>${name}</name>.*?</\\1>`, "s");
    await Deno.writeTextFile(file, text.replace(part, ""));
    return await Connection.open(`test://${file}`);
  } finally {
    await Deno.remove(file);
  }
}

Deno.test("a template whose machines are to be resumed needs a warm image", async () => {
  await using connection = await openTestHost();
  const yaml =
    "domain_type: qemu\nstart: warm\ntemplates: { debian-12: {}, old-name: { start: cold } }";
  await using host = await doctorHost({ connection, config: parseConfig(yaml, "x") });
  const { remedy } = only(
    await checkWarmImages(host),
    "warning",
    /^The template "debian-12" has no warm image$/,
  );
  assert.equal(remedy, "libvirt-gci warm debian-12");
});
