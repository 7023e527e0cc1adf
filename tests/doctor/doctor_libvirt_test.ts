// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { fileSystemSpace } from "../../ffi/proc.ts";
import { gib } from "../../src/bytes.ts";
import { networkFindings } from "../../src/doctor/network_xml.ts";
import { checkNetworks, startFindings } from "../../src/doctor/networks.ts";
import { checkOverlayPool, checkTemplatePool } from "../../src/doctor/storage.ts";
import { checkTemplates } from "../../src/doctor/templates.ts";
import { checkWarmImages } from "../../src/doctor/warm_check.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { volumeName } from "../../src/machine/storage/volume_names.ts";
import { createRawVolume } from "../../src/machine/storage/volumes.ts";
import { DEFAULT_CONFIG } from "../../src/settings/settings.ts";
import { poolPath } from "../../src/shell.ts";
import { sleep } from "../../src/wait.ts";
import { merged } from "../fakes/merged.ts";
import { allOk, answerCalls, doctorHost, look, notOk, only } from "../fakes/test_doctor.ts";

const TEMPLATES = "/var/lib/libvirt/base_imgs";
const DEBIAN = `${TEMPLATES}/debian-12.qcow2`;
/** Where prepare makes the pool that the test host has. */
const OVERLAYS = poolPath("libvirt-gci");

/** Defines a pool of this kind. */
async function definePool(
  connection: Connection,
  { name, type = "dir", path = `/${name}`, starts = false }: {
    readonly name: string;
    readonly type?: string;
    readonly path?: string;
    readonly starts?: boolean;
  },
): Promise<void> {
  const xml =
    `<pool type="${type}"><name>${name}</name><target><path>${path}</path></target></pool>`;
  using pool = await StoragePool.define(connection, name, xml);
  if (starts) await pool.buildAndStart();
}

Deno.test("pools that are active and have space are ok, with their file system", async () => {
  const templates = await look(checkTemplatePool);
  only(templates, "ok", /"base_imgs": 94 of 100 GiB free \(94 %\) in \/.*base_imgs \(xfs\)$/);
  const overlays = await look(checkOverlayPool);
  allOk(overlays);
  assert.match(overlays[0]?.subject ?? "", /"libvirt-gci": 99 of 100 GiB free/);
  assert.match(overlays[1]?.subject ?? "", /^Only this user and root can write to/);
});

Deno.test("a pool that is missing is a problem, but for the one that the first job makes", async () => {
  const config = { pools: { templates: "no such", overlays: "none" } };
  const noTemplates = await look(checkTemplatePool, { config });
  const { remedy } = only(noTemplates, "problem", /"no such" does not exist/);
  assert.match(
    remedy ?? "",
    /pool-define-as 'no such' dir .* && virsh .* pool-autostart 'no such'$/,
  );
  const noOverlays = await look(checkOverlayPool, { config });
  const { meaning } = only(noOverlays, "problem", /"none" does not exist/);
  assert.match(meaning, /set "pools\.overlays"/);
  await using connection = await openHostWithout("libvirt-gci");
  only(
    await look(checkOverlayPool, { connection }),
    "ok",
    /^The first job will create the storage pool "libvirt-gci"/,
  );
});

Deno.test("a pool for machines' disks that has no files is a problem", async () => {
  const findings = await look(checkOverlayPool, {
    libvirt: (it) => definePool(it, { name: "vg0", type: "logical", starts: true }),
    config: { pools: { overlays: "vg0" } },
  });
  only(findings, "problem", /"vg0" has the type logical/);
});

Deno.test("a pool that is not active is a problem, and no autostart a warning", async () => {
  const findings = await look(checkOverlayPool, {
    libvirt: async (connection) => {
      answerCalls(connection, { virStoragePoolGetAutostart: 0 });
      await definePool(connection, { name: "idle" });
    },
    config: { pools: { overlays: "idle" } },
  });
  assert.deepEqual(findings.map(({ level, remedy }) => [level, remedy]), [
    ["problem", "virsh -c qemu:///system pool-start idle"],
    ["warning", "virsh -c qemu:///system pool-autostart idle"],
  ]);
});

for (
  const [check, pool, used, level, space] of [
    [checkOverlayPool, "libvirt-gci", 83, "ok", "16 of 100 GiB free (16 %)"],
    [checkOverlayPool, "libvirt-gci", 86, "warning", "13 of 100 GiB free (13 %)"],
    [checkOverlayPool, "libvirt-gci", 95, "problem", "4.0 of 100 GiB free (4 %)"],
    [checkTemplatePool, "base_imgs", 84, "ok", "10 of 100 GiB free (10 %)"], // it does not grow
    [checkTemplatePool, "base_imgs", 92, "warning", "2.0 of 100 GiB free (2 %)"],
  ] as const
) {
  Deno.test(`the pool "${pool}" with ${space} is a finding of the level ${level}`, async () => {
    const findings = await look(check, {
      files: { [OVERLAYS]: undefined },
      libvirt: (it) => createVolume(it, pool, { name: "big", gib: used }),
    });
    assert.ok(only(findings, level, new RegExp(pool)).subject.includes(space));
  });
}

Deno.test("the space of a pool on this host is what its file system has now", async () => {
  const path = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const [{ subject } = { subject: "" }] = await look(checkTemplatePool, {
    libvirt: (it) => definePool(it, { name: "here", path, starts: true }),
    config: { pools: { templates: "here" } },
  });
  const total = gib(fileSystemSpace(path)?.total ?? NaN);
  await Deno.remove(path);
  assert(subject.includes(` of ${total} GiB free `), `${total} GiB: ${subject}`);
});

for (const [free, level] of [[21, "warning"], [19, "problem"]] as const) {
  Deno.test(`a large pool of disks that is almost full, with ${free} GiB free, is a ${level}`, async () => {
    const bytes = `<capacity>${1024 ** 4}</capacity><available>${free * 1024 ** 3}</available>`;
    const xml = `<pool type="dir">${bytes}<target><path>/nonexistent</path></target></pool>`;
    const libvirt = (it: Connection) => answerCalls(it, { virStoragePoolGetXMLDesc: xml });
    const { subject } = only(await look(checkOverlayPool, { libvirt }), level, /little free space/);
    assert.ok(subject.includes(`${free} of 1024 GiB free`));
  });
}

Deno.test("a directory of disks that others may write to is a problem", async () => {
  const files = { [OVERLAYS]: { text: null, mode: 0o775 } };
  const found = only(notOk(await look(checkOverlayPool, { files })), "problem", /./);
  assert.match(found.meaning, /replace the disks/);
  assert.equal(found.remedy, `chown root ${OVERLAYS} && chmod go-w ${OVERLAYS}`);
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
  const name = "<name>n</name><forward mode='nat'/>";
  return `<network ${namespace}>${name}${bridge}${ip(dhcp)}${options}</network>`;
}

const N = { config: DEFAULT_CONFIG, name: "n" };

/** Settings with machines in the network "n". */
function inN(isolate: boolean): typeof N {
  const machine = { network: { name: "n", isolate } };
  return { name: "n", config: merged(DEFAULT_CONFIG, { machine }) };
}

Deno.test("a network that costs machines no time is ok", () => {
  only(networkFindings(networkXml(), N), "ok", /"n" has 253 addresses, leased for 60 min/);
});

Deno.test("STP is a warning that says how long each machine waits", () => {
  for (
    const [attributes, seconds] of [["stp='on' delay='15'", 30], ["stp='on' delay='0'", 4], ["", 4]]
  ) {
    const bridge = `<bridge name='virbr0' ${attributes}/>`;
    const stp = only(notOk(networkFindings(networkXml({ bridge }), N)), "warning", /STP/);
    assert.match(stp.meaning, new RegExp(`waits ${seconds} s`));
    assert.match(stp.remedy ?? "", /net-edit n # in <bridge>, set stp='off' delay='0'\n/);
  }
});

Deno.test("a delay without STP costs nothing", () => {
  const bridge = "<bridge name='virbr0' stp='off' delay='15'/>";
  allOk(networkFindings(networkXml({ bridge }), N));
});

Deno.test("dnsmasq without no-ping is a warning, unless it has no address to choose", () => {
  for (const options of ["", NETWORK.options.replace("no-ping", "log-dhcp")]) {
    const ping = only(notOk(networkFindings(networkXml({ options }), inN(false))), "warning", /./);
    assert.match(ping.meaning, /3 s/);
    assert.match(ping.remedy ?? "", /<dnsmasq:option value='no-ping'\/>/);
    allOk(networkFindings(networkXml({ options }), inN(true)));
  }
});

Deno.test("a network without DHCP is a problem", () => {
  const { remedy } = only(networkFindings(networkXml({ dhcp: "" }), N), "problem", /has no DHCP/);
  assert.match(remedy ?? "", /in <ip>, add <dhcp>/);
  const ipv6 = "<ip family='ipv6' address='fd00::1' prefix='64'><dhcp/></ip>";
  only(networkFindings(networkXml({ ip: () => ipv6 }), N), "problem", /has no DHCP/);
});

Deno.test("a range that throw-away machines use up is a warning", () => {
  for (
    const [end, lease, isolate, level, subject] of [
      ["10.0.0.254", "expiry='0'", true, "ok", /leased forever/],
      ["10.0.0.16", "", true, "warning", /has 15 addresses/],
      ["10.0.0.16", "", false, "warning", /has 15 addresses/],
      ["10.0.0.254", "expiry='24' unit='hours'", false, "warning", /leased for 24 h/],
      ["10.0.0.254", "expiry='0'", false, "warning", /leased forever/],
      ["10.0.0.17", "expiry='600' unit='seconds'", false, "ok", /16 .* for 10 min/],
      ["10.0.3.254", "expiry='24' unit='hours'", false, "ok", /1021 addresses/],
    ] as const
  ) {
    const range = `<range start='10.0.0.2' end='${end}'>${lease && `<lease ${lease}/>`}</range>`;
    const xml = networkXml({ dhcp: `<dhcp>${range}</dhcp>` });
    only(networkFindings(xml, inN(isolate)), level, subject);
  }
});

Deno.test("a network on a bridge of somebody else's is a warning", () => {
  const xml = "<network><name>n</name><forward mode='bridge'/><bridge name='br0'/></network>";
  only(networkFindings(xml, N), "warning", /does not serve addresses/);
});

Deno.test("each network that the settings name is looked at, and none that is missing passes", async () => {
  const yaml =
    "templates:\n  a: { network: { name: elsewhere } }\n  b: { network: { name: none } }\n";
  const findings = await look(checkNetworks, { yaml });
  assert(findings.some(({ level, subject }) => level === "ok" && /"default"/.test(subject)));
  const missing = findings.filter(({ level }) => level === "problem");
  assert.match(
    only(missing, "problem", /"elsewhere" does not exist/).remedy ?? "",
    /net-list --all$/,
  );

  await using connection = await openHostWithout("default");
  const bare = await look(checkNetworks, { connection });
  const { remedy } = only(bare, "problem", /"default" does not exist/);
  assert.match(remedy ?? "", /net-define .*default.xml && virsh .* net-start default$/);
  const machine = { network: { name: "none" } };
  assert.deepEqual(await look(checkNetworks, { connection, machine }), []);
});

Deno.test("a network that is not active is a problem, and no autostart a warning", () => {
  assert.deepEqual(
    notOk(startFindings("n", { isActive: false, autostarts: false }, N))
      .map(({ level, remedy }) => [level, remedy]),
    [
      ["problem", "virsh -c qemu:///system net-start n"],
      ["warning", "virsh -c qemu:///system net-autostart n"],
    ],
  );
  only(startFindings("n", { isActive: true, autostarts: true }, N), "ok", /"n" is active/);
});

Deno.test("each template is told with its format, its size and its machines", async () => {
  const libvirt = (it: Connection) => createOverlay(it, "m", DEBIAN);
  const findings = await look(checkTemplates, { libvirt });
  assert.deepEqual(findings.map(({ subject }) => subject), [
    'The template "debian-12.qcow2": qcow2, 4 GiB, used by 1 machine',
    'The template "old-name": raw, 2 GiB, used by 0 machines',
  ]);
  allOk(findings);
});

Deno.test("a template that the settings name and nobody made is a problem", async () => {
  const yaml = "default_template: fedora\ntemplates: { x: { volume: x-v3 }, debian-12: {} }";
  const missing = notOk(await look(checkTemplates, { yaml }));
  assert.deepEqual(missing.map(({ level, subject }) => [level, subject]), [
    ["problem", 'The settings name the template "x", which does not exist'],
    ["problem", 'The settings name the template "fedora", which does not exist'],
  ]);
  assert.match(missing[0]?.meaning ?? "", /no volume "x-v3"$/);
  assert.match(missing[0]?.remedy ?? "", /pool-refresh base_imgs && virsh .* vol-list base_imgs$/);
});

Deno.test("an added template is told by its name, and what its uploads left is not", async () => {
  const libvirt = async (connection: Connection) => {
    using pool = await StoragePool.lookup(connection, "base_imgs");
    for (const id of ["6000000001", "6000000002"]) {
      using _ = await createRawVolume(pool, volumeName("x-v3", "template", id), 1024 ** 3);
      using __ = await createRawVolume(pool, volumeName("x-v3", "template-info", id), 0);
    }
    using _ = await createRawVolume(pool, volumeName("x-v3", "template", "6000000003"), 1);
    await createOverlay(
      connection,
      "m",
      `${TEMPLATES}/${volumeName("x-v3", "template", "6000000002")}`,
    );
  };
  const yaml = "templates: { x: { volume: x-v3.qcow2 }, x-v3.qcow3: {} }";
  const findings = await look(checkTemplates, { libvirt, yaml });
  assert.deepEqual(findings.map(({ subject }) => subject), [
    'The template "debian-12.qcow2": qcow2, 4 GiB, used by 0 machines',
    'The template "old-name": raw, 2 GiB, used by 0 machines',
    'The template "x-v3": raw, 1 GiB, used by 1 machine',
    'The settings name the template "x-v3.qcow3", which does not exist',
  ]);
});

Deno.test("a pool without templates is a problem", async () => {
  const libvirt = async (connection: Connection) => {
    using pool = await StoragePool.lookup(connection, "base_imgs");
    for (const name of await pool.volumeNames()) {
      using volume = await pool.lookupVolume(name);
      await volume.delete();
    }
  };
  only(await look(checkTemplates, { libvirt }), "problem", /"base_imgs" has no templates/);
});

Deno.test("a template that is neither qcow2 nor raw is a warning, and a directory is no template", async () => {
  const libvirt = async (connection: Connection) => {
    await createVolume(connection, "base_imgs", { name: "win.vmdk", format: "vmdk" });
    await createVolume(connection, "base_imgs", { name: "lost+found", format: "dir" });
  };
  const found = notOk(await look(checkTemplates, { libvirt }));
  const { remedy } = only(found, "warning", /"win.vmdk" has the format vmdk/);
  const path = `${TEMPLATES}/win.vmdk`;
  assert.equal(remedy, `qemu-img convert -O qcow2 ${path} ${path}.qcow2`);
});

Deno.test("a template that stands on a file is a problem only without that file", async () => {
  const libvirt = (it: Connection) =>
    createVolume(it, "base_imgs", { name: "top.qcow2", backing: "/srv/base.img" });
  const found = notOk(await look(checkTemplates, { libvirt }));
  only(found, "problem", /"top.qcow2" is based on \/srv\/base.img, which does not exist/);
  allOk(await look(checkTemplates, { libvirt, files: { "/srv/base.img": "" } }));
});

Deno.test(
  "a template that somebody wrote to after a disk was made on it is a warning, a new one is not",
  { ignore: Deno.statSync("/tmp").birthtime === null },
  async () => {
    const files = { [DEBIAN]: "" };
    const libvirt = (it: Connection) => createOverlay(it, "m", DEBIAN);
    await using host = await doctorHost({ files, libvirt });
    const clockTick = 20; // the kernel's times of files are that coarse
    await sleep(clockTick);
    await Deno.writeTextFile(`${host.root}${OVERLAYS}/m.overlay.libvirt-gci`, "");
    allOk(await checkTemplates(host));

    await sleep(clockTick);
    await Deno.writeTextFile(host.root + DEBIAN, "by hand");
    const found = notOk(await checkTemplates(host));
    const { meaning } = only(found, "warning", /The template "debian-12.qcow2" was modified while/);
    assert.match(meaning, /^\/var.*debian-12.qcow2 is newer than the disks of 1 of them/);

    await Deno.writeTextFile(`${host.root}${DEBIAN}.new`, "a new version");
    await Deno.rename(`${host.root}${DEBIAN}.new`, host.root + DEBIAN);
    allOk(await checkTemplates(host));
  },
);

const DISK = `<disk type="file"><source file="${DEBIAN}"/><target dev="vda"/></disk>`;

/** Starts a domain with this disk. */
async function startDomain(connection: Connection, disk: string): Promise<void> {
  const os = "<memory>65536</memory><os><type>hvm</type></os>";
  const xml = `<domain type="test"><name>vm</name>${os}<devices>${disk}</devices></domain>`;
  using _ = await Domain.create(connection, "vm", xml, 0);
}

Deno.test("a domain whose disk is a template's is a problem, running or not", async () => {
  const volume = DISK.replace('"file"', '"volume"')
    .replace(/<source.*?>/, '<source pool="base_imgs" volume="debian-12.qcow2"/>');
  for (const disk of [DISK, volume]) {
    for (const isActive of [true, false]) {
      const libvirt = async (connection: Connection) => {
        await startDomain(connection, disk);
        if (!isActive) answerCalls(connection, { virDomainIsActive: 0 });
      };
      const found = notOk(await look(checkTemplates, { libvirt }));
      const { subject, meaning, remedy } = only(found, "problem", /debian-12.*the domain "vm"/);
      assert.equal(/which is running$/.test(subject), isActive);
      assert.match(meaning, /corrupts every machine that is created from it/);
      assert.equal(remedy, `virsh -c qemu:///system ${isActive ? "shutdown" : "edit"} vm`);
    }
  }
});

Deno.test("a domain that writes to what a template stands on is a problem too", async () => {
  const libvirt = async (connection: Connection) => {
    await createVolume(connection, "base_imgs", { name: "top.qcow2", backing: DEBIAN });
    for (const name of ["a", "b"]) await createOverlay(connection, name, `${TEMPLATES}/top.qcow2`);
    await startDomain(connection, DISK);
  };
  const found = (await look(checkTemplates, { libvirt, files: { [DEBIAN]: "" } }))
    .filter(({ subject }) => /"top.qcow2"/.test(subject));
  assert.match(
    only(found, "problem", /domain "vm"/).meaning,
    /corrupts the 2 machines based on it/,
  );
});

Deno.test("a machine of ours, and a disk that is only read, harm no template", async () => {
  const below = `<backingStore type="file"><format type="qcow2"/><source file="${DEBIAN}"/>` +
    "</backingStore>";
  const overlay = DISK.replace(DEBIAN, `${OVERLAYS}/m.overlay.libvirt-gci`);
  for (
    const disk of [
      DISK.replace("</disk>", "<readonly/></disk>"),
      overlay.replace("</disk>", `${below}</disk>`),
    ]
  ) {
    allOk(await look(checkTemplates, { libvirt: (it) => startDomain(it, disk) }));
  }
});

Deno.test("a template that is larger than limits.disk_gib is a problem", async () => {
  const limits = "limits: {disk_gib: 3}\ndisk_gib: 3\n";
  const old = `${limits}templates: { old: { volume: old-name } }`;
  for (
    const [yaml, level] of [
      [old, "problem"],
      [`${limits}templates: { debian-12: { limits: {disk_gib: 9} } }`, "problem"],
      [`${old}\nrules: [{ limits: {disk_gib: 9} }]`, "warning"],
    ] as const
  ) {
    const found = notOk(await look(checkTemplates, { yaml }));
    only(found, level, /"debian-12.qcow2" has 4 GiB, but "limits\.disk_gib" is 3/);
  }
});

Deno.test("a template whose machines are to be resumed needs a warm image", async () => {
  const yaml =
    "domain_type: qemu\nstart: warm\ntemplates: { debian-12: {}, old-name: { start: cold } }";
  const findings = await look(checkWarmImages, { yaml });
  const { remedy } = only(findings, "warning", /^The template "debian-12" has no warm image$/);
  assert.equal(remedy, "libvirt-gci warm debian-12");
});

/** The disk of a machine, on this file. */
function createOverlay(connection: Connection, machine: string, backing: string): Promise<void> {
  return createVolume(connection, "libvirt-gci", {
    name: `${machine}.overlay.libvirt-gci`,
    backing,
  });
}

async function createVolume(
  connection: Connection,
  poolName: string,
  { name, backing, format = "qcow2", gib = 1 }: {
    readonly name: string;
    readonly backing?: string;
    readonly format?: string;
    readonly gib?: number;
  },
): Promise<void> {
  using pool = await StoragePool.lookup(connection, poolName);
  const below = backing === undefined ? "" : `<backingStore><path>${backing}</path></backingStore>`;
  const size = `<capacity unit="GiB">${gib}</capacity>` +
    (gib > 1 ? `<allocation unit="GiB">${gib}</allocation>` : "");
  const xml = `<volume><name>${name}</name>${size}` +
    `<target><format type="${format}"/></target>${below}</volume>`;
  using _ = await pool.createVolume(name, xml);
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
