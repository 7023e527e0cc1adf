// SPDX-License-Identifier: GPL-2.0-or-later
import { parseXml, XmlElement } from "@rgrove/parse-xml";
import fc from "fast-check";
import assert from "node:assert/strict";
import type { DomainOnDisk } from "../../src/machine/domain_xml.ts";
import { EMPTY_METADATA, type MachineMetadata } from "../../src/machine/metadata.ts";
import { xmlForMachine } from "../../src/machine/warm/warm_xml.ts";
import { childrenOf, find, rootOf, textAt } from "../../src/read_xml.ts";
import { DEFAULT_CONFIG } from "../../src/settings/settings.ts";

const SAVED = await Deno.readTextFile(new URL("../data/saved.xml", import.meta.url));

const METADATA: MachineMetadata = {
  ...EMPTY_METADATA,
  job: "7",
  project: "grp/proj",
  template: "lite",
  mac: "52:54:00:01:02:03",
  user: "gitlab-runner",
  port: 22,
  key: "/k",
  shell: "bash",
  hostKey: "h",
};

const MACHINE: DomainOnDisk = {
  settings: DEFAULT_CONFIG.machine,
  filter: null,
  card: null,
  name: "mine",
  metadata: METADATA,
  overlayPath: "/pool/mine.overlay.libvirt-gci",
  consolePath: "/pool/mine.guest.libvirt-gci/console",
  seedPath: "/pool/mine.seed.libvirt-gci",
  credentialPath: null,
  nvramPath: null,
};

/** All elements, each as its path of names with its attributes and its own text. */
function flat(element: XmlElement | null, path = ""): string[] {
  if (element === null) return [];
  const children = element.children.filter((child) => child instanceof XmlElement);
  const here = `${path}/${element.name}`;
  const text = children.length === 0 ? element.text : "";
  return [
    `${here} ${JSON.stringify(element.attributes)} ${text}`,
    ...children.flatMap((child) => flat(child, here)),
  ];
}

Deno.test("a machine that is resumed has the saved hardware, and what is its own besides", () => {
  const before = flat(rootOf(SAVED));
  const after = flat(rootOf(xmlForMachine(SAVED, MACHINE)));
  const gone = before.filter((line) => !after.includes(line));
  const come = after.filter((line) => !before.includes(line));
  const kinds = (lines: string[]): string[] =>
    lines.map((line) => line.split(" ")[0]?.split("/").slice(2).join("/") ?? "");
  const own = [
    "name",
    "genid",
    "title",
    "metadata/gci:machine",
    "devices/disk/source",
    "devices/disk/source",
    "devices/serial/log",
    "devices/console/log",
  ];
  assert.deepEqual(kinds(come), own);
  assert.deepEqual(kinds(gone).sort(), [...own, "uuid", "seclabel", "seclabel/label"].sort());
  for (const file of [MACHINE.overlayPath, MACHINE.seedPath, MACHINE.consolePath]) {
    assert(come.some((line) => line.includes(`"${file}"`)), `no ${file}`);
  }
  assert(!after.some((line) => line.includes("warm-")), "something is still the saved machine's");
});

Deno.test("a machine that is resumed keeps the variables of its firmware in a file of its own", () => {
  const nvram = `<nvram template="/usr/share/VARS.fd">/pool/warm-1.guest.libvirt-gci/nvram</nvram>`;
  const machine = { ...MACHINE, nvramPath: "/pool/mine.guest.libvirt-gci/nvram" };
  const root = rootOf(xmlForMachine(SAVED.replace("</os>", `${nvram}</os>`), machine));
  assert.equal(textAt(root, "os", "nvram"), machine.nvramPath);
  assert.equal(find(root, "os", "nvram")?.attributes["template"], "/usr/share/VARS.fd");
});

Deno.test("each machine that is resumed has a generation id of its own, and libvirt makes its UUID", () => {
  const ids = [1, 2].map(() => textAt(rootOf(xmlForMachine(SAVED, MACHINE)), "genid"));
  assert.notEqual(ids[0], ids[1]);
  assert.match(ids[0] ?? "", /^[0-9a-f-]{36}$/);
  assert.equal(find(rootOf(xmlForMachine(SAVED, MACHINE)), "uuid"), undefined);
});

/** A text in which all that XML may not hold is the same. */
function comparable(text: string | undefined): string | undefined {
  return text?.replace(/[\p{Cc}\ufffe\uffff]/gu, "\ufffd");
}

Deno.test("whatever a resumed job's project and template are called, its XML is well-formed and says so", () => {
  const text = fc.string({ unit: "binary" });
  fc.assert(
    fc.property(text, text, (project, template) => {
      const metadata = { ...METADATA, project, template };
      const root = parseXml(xmlForMachine(SAVED, { ...MACHINE, metadata }).toString()).root;
      const [machine] = childrenOf(find(root, "metadata"), "gci:machine");
      assert.equal(machine?.attributes["job"], "7");
      assert.equal(comparable(machine?.attributes["project"]), comparable(project));
      assert.equal(comparable(machine?.attributes["template"]), comparable(template));
    }),
  );
});
