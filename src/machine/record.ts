// SPDX-License-Identifier: GPL-2.0-or-later
import type { Domain } from "../libvirt/domain.ts";
import { rootOf } from "../read_xml.ts";
import { type Xml, xml } from "../xml.ts";
import type { Owner } from "./owner.ts";

/** The XML namespace of our element in a domain's `<metadata>`, which marks the domain as ours. */
export const NAMESPACE = "urn:libvirt-gci:machine:1";
const PREFIX = "gci";

/** What the machine's domain says of it: all that a later stage needs to know. */
export interface MachineRecord extends Owner {
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
  /** Until when it is to stay, whatever becomes of its job, ISO 8601; empty if nobody said so. */
  readonly keptUntil: string;
  /** The name of the machine that took over the one that waited here; else empty. */
  readonly machine: string;
}

/** Whether its job is over and it was kept: cleanup made that its deadline. */
export function isKept({ keptUntil, deadline }: MachineRecord): boolean {
  return keptUntil !== "" && keptUntil === deadline;
}

/** The record as the element that stands in `<metadata>`. */
export function recordXml(record: MachineRecord): Xml {
  return xml`
    <gci:machine xmlns:gci="${NAMESPACE}" ${attributesXml(record)} />
  `;
}

function attributesXml(record: MachineRecord): Xml {
  return xml`
    job="${record.job}"
    project="${record.project}"
    template="${record.template}"
    created="${record.created}"
    deadline="${record.deadline}"
    attemptDir="${record.attemptDir}"
    runner="${record.runner}"
    host="${record.host}"
    mac="${record.mac}"
    user="${record.user}"
    port="${record.port}"
    key="${record.key}"
    shell="${record.shell}"
    address="${record.address}"
    hostKey="${record.hostKey}"
    keepMinutes="${record.keepMinutes}"
    failed="${record.failed}"
    keptUntil="${record.keptUntil}"
    machine="${record.machine}"
  `;
}

/** The record of a running domain, or null if the domain is not ours. */
export async function readRecord(domain: Domain): Promise<MachineRecord | null> {
  const element = await domain.metadata(NAMESPACE);
  if (element === null) return null;
  const attributes = rootOf(element)?.attributes ?? {};
  const read = (name: keyof MachineRecord): string => attributes[name] ?? "";
  return {
    job: read("job"),
    project: read("project"),
    template: read("template"),
    created: read("created"),
    deadline: read("deadline"),
    attemptDir: read("attemptDir"),
    runner: read("runner"),
    host: read("host"),
    mac: read("mac"),
    user: read("user"),
    port: read("port"),
    key: read("key"),
    shell: read("shell"),
    address: read("address"),
    hostKey: read("hostKey"),
    keepMinutes: read("keepMinutes"),
    failed: read("failed"),
    keptUntil: read("keptUntil"),
    machine: read("machine"),
  };
}

/** Replaces the record of a running domain. */
export function writeRecord(domain: Domain, record: MachineRecord): Promise<void> {
  const element = xml`
    <machine ${attributesXml(record)} />
  `; // libvirt itself adds the namespace
  return domain.setMetadata(NAMESPACE, PREFIX, element.toString());
}
