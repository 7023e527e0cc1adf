// SPDX-License-Identifier: GPL-2.0-or-later
import { parseXml, XmlElement } from "@rgrove/parse-xml";
import fc from "fast-check";
import assert from "node:assert/strict";
import {
  type DomainOnDisk,
  domainXml,
  interfaceXml,
  withFilterLater,
} from "../../src/machine/domain_xml.ts";
import { randomMac } from "../../src/machine/network/card.ts";
import { DEFAULT_CONFIG, type MachineSettings } from "../../src/settings/settings.ts";

import { type Differences, merged } from "../fakes/merged.ts";

const SPDX = "<!-- SPDX-License-Identifier: GPL-2.0-or-later -->";

const MACHINE: DomainOnDisk = {
  name: "gitlab-proj-4242-0123456789",
  metadata: {
    job: "4242",
    project: "grp/proj",
    template: "debian-12",
    created: Date.UTC(2024, 4, 6, 7, 8, 9),
    deadline: Date.UTC(2024, 4, 6, 8, 18, 9),
    attemptDir: "/tmp/custom-executor1",
    runner: "812 1043 boot",
    isRunner: true,
    host: "0123456789abcdef",
    mac: "52:54:00:01:02:03",
    user: "gitlab-runner",
    port: 22,
    key: "/root/.ssh/id_ed25519",
    shell: "bash",
    address: "",
    hostKey: "",
    keepMinutes: 60,
    failed: "",
    keptUntil: null,
    promisedUntil: null,
    silent: false,
    machine: "",
  },
  settings: DEFAULT_CONFIG.machine,
  filter: "libvirt-gci-gitlab-proj-4242-0123456789",
  card: { mac: "52:54:00:01:02:03", address: "192.168.122.42", leasedUntil: null },
  overlayPath: "/var/lib/libvirt/libvirt-gci/m.overlay.libvirt-gci",
  consolePath: "/var/lib/libvirt/libvirt-gci/m.guest.libvirt-gci/console",
  seedPath: "/var/lib/libvirt/libvirt-gci/m.seed.libvirt-gci",
  credentialPath: null,
  nvramPath: null,
};

function settings(differences: Differences<MachineSettings>): Pick<DomainOnDisk, "settings"> {
  return { settings: merged(DEFAULT_CONFIG.machine, differences) };
}

const CASES: Readonly<Record<string, Partial<DomainOnDisk>>> = {
  kvm: {},
  nested: { ...settings({ nested: true }), card: null },
  efi: { nvramPath: "/var/lib/libvirt/libvirt-gci/m.guest.libvirt-gci/nvram" },
  emulated: {
    seedPath: null,
    filter: null,
    ...settings({ domainType: "qemu", network: { isolate: false } }),
  },
  systemd: {
    seedPath: null,
    credentialPath: "/var/lib/libvirt/libvirt-gci/m.credential.libvirt-gci",
  },
  warm: { isWarm: true, filter: null, card: null },
  hermetic: { filter: null, ...settings({ network: { name: "none" } }) },
  bounded: settings({
    vcpus: 8,
    memoryMib: 16384,
    cpu: { shares: 512 },
    disk: { mibPerSecond: 100, iops: 500 },
    network: { mibPerSecond: 10 },
  }),
};

for (const [name, differences] of Object.entries(CASES)) {
  Deno.test(`the machine "${name}" is the domain XML in tests/data/domain_${name}.xml`, async () => {
    const file = new URL(`../data/domain_${name}.xml`, import.meta.url);
    // deno fmt may indent the template otherwise: only the elements count.
    const lines = domainXml({ ...MACHINE, ...differences }).toString().split("\n")
      .map((line) => line.trim()).filter((line) => line !== "");
    const actual = [SPDX, ...lines, ""].join("\n");
    if (Deno.env.has("UPDATE")) await Deno.writeTextFile(file, actual);
    assert.equal(actual, await Deno.readTextFile(file));
  });
}

Deno.test("whatever a job's project and template are called, the XML is well-formed and says so", () => {
  fc.assert(
    fc.property(
      fc.string({ unit: "binary" }),
      fc.string({ unit: "binary" }),
      (project, template) => {
        const metadata = { ...MACHINE.metadata, project, template };
        const root = parseXml(domainXml({ ...MACHINE, metadata }).toString()).root;
        const element = child(root, "metadata");
        const ours = element && child(element, "gci:machine");
        assert.equal(root?.children.filter((node) => node instanceof XmlElement).length, 13);
        assert.equal(ours?.attributes["job"], "4242");
        assert.equal(comparable(ours?.attributes["project"]), comparable(project));
        assert.equal(comparable(ours?.attributes["template"]), comparable(template));
      },
    ),
    { numRuns: 5000 },
  );
});

/** A text in which all that XML may not hold is the same. */
function comparable(text: string | undefined): string | undefined {
  return text?.replace(/[\p{Cc}\ufffe\uffff]/gu, "\ufffd");
}

function child(element: XmlElement | null, name: string): XmlElement | null {
  const found = element?.children.find((node) => node instanceof XmlElement && node.name === name);
  return found instanceof XmlElement ? found : null;
}

Deno.test("a machine's card has an address of QEMU's range", () => {
  assert.match(randomMac(), /^52:54:00(:[0-9a-f]{2}){3}$/);
});

Deno.test("a card has its filter later where its address is known, and else from the start", () => {
  const filter =
    /<filterref filter="libvirt-gci-gitlab-proj-4242-0123456789">\s*<parameter name="IP" value="192.168.122.42"/;
  assert.match(interfaceXml(MACHINE).toString(), filter);
  assert.doesNotMatch(interfaceXml(withFilterLater(MACHINE)).toString(), /filterref/);
  assert.doesNotMatch(domainXml(MACHINE).toString(), /filterref/);
  const learned = { ...MACHINE, card: null };
  assert.equal(withFilterLater(learned), learned);
  assert.match(domainXml(learned).toString(), /CTRL_IP_LEARNING/);
});
