// SPDX-License-Identifier: GPL-2.0-or-later
import type { Domain } from "../libvirt/domain.ts";
import { orNull, VIR_ERR } from "../libvirt/error.ts";
import type { Owner } from "./owner.ts";
import { rootOf } from "../read_xml.ts";
import { Xml, xml } from "../xml.ts";

/** The XML namespace of our element in a domain's `<metadata>`, which marks the domain as ours. */
export const NAMESPACE = "urn:libvirt-gci:machine:1";
const PREFIX = "gci";

/** What the machine's domain says of it: all that a later stage needs to know. */
export interface MachineMetadata extends Owner {
  readonly template: string;
  readonly mac: string;
  /** How to log in. */
  readonly user: string;
  readonly port: string;
  readonly key: string;
  readonly shell: string;
  /** Known once the machine is ready: its address, and the SHA-256 of its SSH host key. */
  readonly address: string;
  readonly hostKey: string;
  /** How long to keep it after a failure, a number; empty is not at all. */
  readonly keepMinutes: string;
  /** The stage of GitLab's that failed first, if none of that name has passed since; else empty. */
  readonly failed: string;
  /** Until when it is to stay for that failure at least, as the job's log says, ISO 8601; else empty. */
  readonly promisedUntil: string;
  /** `yes` if it did not answer when a script of its job was cancelled, nor since; else empty. */
  readonly silent: string;
  /** Until when it is to stay, whatever becomes of its job, ISO 8601; empty if nobody said so. */
  readonly keptUntil: string;
  /** The name of the machine that took over the one that waited here; else empty. */
  readonly machine: string;
}

/** Metadata that says nothing. */
export const EMPTY_METADATA: MachineMetadata = {
  ...{ job: "", project: "", template: "", created: "", deadline: "", attemptDir: "", runner: "" },
  ...{ host: "", mac: "", user: "", port: "", key: "", shell: "", address: "", hostKey: "" },
  ...{ isRunner: "", keepMinutes: "", failed: "", promisedUntil: "", silent: "", keptUntil: "" },
  machine: "",
};

const KEYS = Object.keys(EMPTY_METADATA) as (keyof MachineMetadata)[];

/** Whether its job is over and it was kept: cleanup made that its deadline. */
export function isKept({ keptUntil, deadline }: MachineMetadata): boolean {
  return keptUntil !== "" && keptUntil === deadline;
}

/** The metadata as the element that stands in `<metadata>`. */
export function metadataXml(metadata: MachineMetadata): Xml {
  return xml`
    <gci:machine xmlns:gci="${NAMESPACE}" ${attributesXml(metadata)} />
  `;
}

function attributesXml(metadata: MachineMetadata): Xml {
  const attributes = KEYS.map((key) =>
    xml`
      ${new Xml(key)}="${metadata[key]}"
    `
  );
  return xml`${attributes}`;
}

/** The metadata of a running domain, or null if the domain is not ours. */
export async function readMetadata(domain: Domain): Promise<MachineMetadata | null> {
  const element = await domain.metadata(NAMESPACE);
  if (element === null) return null;
  const attributes = rootOf(element)?.attributes ?? {};
  const values = KEYS.map((key) => [key, attributes[key] ?? ""]);
  return Object.fromEntries(values) as MachineMetadata;
}

/** As {@linkcode readMetadata}; null also if the domain has ended just now. */
export function findMetadata(domain: Domain): Promise<MachineMetadata | null> {
  return orNull(VIR_ERR.NO_DOMAIN, readMetadata(domain));
}

/** Replaces the metadata of a running domain. */
export function writeMetadata(domain: Domain, metadata: MachineMetadata): Promise<void> {
  const element = xml`
    <machine ${attributesXml(metadata)} />
  `; // libvirt itself adds the namespace
  return domain.setMetadata(NAMESPACE, PREFIX, element.toString());
}
