// SPDX-License-Identifier: GPL-2.0-or-later
import { type XmlElement, XmlElement as Element, XmlText } from "@rgrove/parse-xml";
import { type DomainOnDisk, titleOf } from "../domain_xml.ts";
import { metadataXml } from "../metadata.ts";
import { rootOf } from "../../read_xml.ts";
import { attributesXml, Xml, xml } from "../../xml.ts";

/**
 * The XML of a saved domain, changed for the machine that resumes from its RAM. The guest's hardware stays
 * the same but for the generation id, by which the kernel learns that it was cloned
 * (https://libvirt.org/formatdomain.html#general-metadata). libvirt creates the UUID.
 */
export function xmlForMachine(savedXml: string, machine: DomainOnDisk): string {
  const root = rootOf(savedXml);
  if (root === null) throw new Error("libvirt saved a domain without XML");
  return write(root, (element, parent) => replacement(element, parent, machine)).toString();
}

/** What replaces an element: null removes it, undefined keeps it. */
function replacement(
  element: XmlElement,
  parent: XmlElement | null,
  machine: DomainOnDisk,
): Xml | null | undefined {
  const { metadata } = machine;
  const file = (path: string | null): Xml => writeTag(element, { file: path ?? "" });
  switch (`${parent?.name ?? ""}/${element.name}`) {
    case "domain/name":
      return xml`<name>${machine.name}</name>`;
    case "domain/title":
      return xml`<title>${titleOf(metadata)}</title>`;
    case "domain/metadata":
      return xml`<metadata>${metadataXml(metadata)}</metadata>`;
    case "domain/genid":
      return xml`<genid>${crypto.randomUUID()}</genid>`;
    case "domain/uuid":
    case "domain/seclabel": // libvirt creates a new one
    case "disk/backingStore": // libvirt detects it
      return null;
    case "disk/source":
      return file(targetOf(parent) === "vda" ? machine.overlayPath : machine.seedPath);
    case "serial/log":
    case "console/log":
      return file(machine.consolePath);
    case "os/nvram":
      return writeTag(element, {}, [xml`${machine.nvramPath ?? ""}`]);
    case "sysinfo/entry":
      return file(machine.credentialPath);
  }
  return undefined;
}

function targetOf(disk: XmlElement | null): string | undefined {
  return (disk?.children ?? []).filter((child) => child instanceof Element)
    .find(({ name }) => name === "target")?.attributes["dev"];
}

type Replace = (element: XmlElement, parent: XmlElement | null) => Xml | null | undefined;

/** The element as XML, with replacements. Text between elements is left out. */
function write(element: XmlElement, replace: Replace, parent: XmlElement | null = null): Xml {
  const replaced = replace(element, parent);
  if (replaced !== undefined) return replaced ?? xml``;
  const elements = element.children.filter((child) => child instanceof Element);
  if (elements.length > 0) {
    return writeTag(element, {}, elements.map((child) => write(child, replace, element)));
  }
  const texts = element.children.filter((child) => child instanceof XmlText);
  return writeTag(element, {}, texts.map(({ text }) => xml`${text}`));
}

function writeTag(
  { name, attributes }: XmlElement,
  others: Readonly<Record<string, string>>,
  content: readonly Xml[] = [],
): Xml {
  const written = attributesXml({ ...attributes, ...others });
  const tag = new Xml(name); // libvirt's own names
  return xml`<${tag}${written}>${content}</${tag}>`;
}
