// SPDX-License-Identifier: GPL-2.0-or-later
import type { Domain } from "../libvirt/domain.ts";
import { orNull, VIR_ERR } from "../libvirt/error.ts";
import { rootOf } from "../read_xml.ts";
import { attributesXml, type Xml, xml } from "../xml.ts";

/** The XML namespace of our element in a domain's `<metadata>`, which marks the domain as ours. */
export const NAMESPACE = "urn:libvirt-gci:machine:1";
const PREFIX = "gci";

/** How a value is read from its text, and written as one. Empty text is what is missing. */
interface Field<T> {
  readonly read: (text: string) => T;
  readonly write: (value: T) => string;
}

const text: Field<string> = { read: (text) => text, write: (text) => text };

/** In milliseconds since 1970, or null; its text is ISO 8601. */
const time: Field<number | null> = {
  read: (text) => Number.isNaN(Date.parse(text)) ? null : Date.parse(text),
  write: (ms) => ms === null ? "" : new Date(ms).toISOString(),
};

/** A number, or null. */
const count: Field<number | null> = {
  read: (text) => /^\d+$/.test(text) ? Number(text) : null,
  write: (number) => String(number ?? ""),
};

const flag: Field<boolean> = {
  read: (text) => text === "yes",
  write: (isSet) => isSet ? "yes" : "",
};

/**
 * What is written down of a machine, in the order of the XML: its domain has all of it, its owner's
 * volume has {@linkcode OWNER}. Machines of older programs have the same texts, so these stay.
 */
const FIELDS = {
  job: text, // GitLab's id of it; empty by hand
  project: text, // the path of the job's project; empty by hand
  template: text, // its name in the settings
  created: time,
  deadline: time, // when GitLab has ended the job for sure, or until when the machine is kept after it
  attemptDir: text, // the directory that GitLab Runner removes after the attempt; empty by hand
  runner: text, // what needs it, a processMark: GitLab Runner, or whoever makes it for later; or empty
  host: text, // where that directory and that process are, a hostMark
  mac: text, // of its network card
  user: text, // who logs in
  port: count, // of its SSH server
  key: text, // the file of the private key to log in with
  shell: text, // which runs the job's scripts
  address: text, // empty until it is ready
  hostKey: text, // the SHA-256 of its SSH host key; empty until that is known
  isRunner: flag, // whether `runner` is GitLab Runner for sure, and no script that it calls a stage by
  keepMinutes: count, // how long to keep it after a failure
  failed: text, // the stage of GitLab's that failed first, if none of that name has passed since
  promisedUntil: time, // until when it stays for that failure at least, as the job's log says
  silent: flag, // whether it did not answer when a script of its job was cancelled, nor since
  keptUntil: time, // until when it stays, whatever becomes of its job; null if nobody said so
  machine: text, // the name of the machine that took over the one that waited here
};

type Key = keyof typeof FIELDS;
const KEYS = Object.keys(FIELDS) as Key[];
const OWNER = [
  "job",
  "project",
  "created",
  "deadline",
  "attemptDir",
  "runner",
  "host",
  "isRunner",
] as const;

/** What the machine's domain says of it: all that a later stage needs to know. */
export type MachineMetadata = {
  readonly [K in Key]: ReturnType<(typeof FIELDS)[K]["read"]>;
};

/** Whose a machine is, and what tells whether anybody still needs it. */
export type Owner = Pick<MachineMetadata, (typeof OWNER)[number]>;

/** The values as texts, in the order of the keys. */
function encode<K extends Key>(
  keys: readonly K[],
  values: Pick<MachineMetadata, K>,
): Record<string, string> {
  const write = (key: K): string => (FIELDS[key] as Field<unknown>).write(values[key]);
  return Object.fromEntries(keys.map((key) => [key, write(key)]));
}

/** The values of these texts; a text that is absent or makes no sense is missing. */
function decode<K extends Key>(
  keys: readonly K[],
  texts: Readonly<Record<string, unknown>>,
): Pick<MachineMetadata, K> {
  const read = (key: K): unknown => FIELDS[key].read(String(texts[key] ?? ""));
  return Object.fromEntries(keys.map((key) => [key, read(key)])) as Pick<MachineMetadata, K>;
}

/** Metadata that says nothing. */
export const EMPTY_METADATA: MachineMetadata = decode(KEYS, {});

/** Whether its job is over and it was kept: cleanup made that its deadline. */
export function isKept({ keptUntil, deadline }: MachineMetadata): boolean {
  return keptUntil !== null && keptUntil === deadline;
}

/** What an owner's volume holds. */
export function ownerJson(owner: Owner): string {
  return `${JSON.stringify(encode(OWNER, owner))}\n`;
}

/** Reads what is in an owner's volume; null if that is nothing, or not all. */
export function parseOwner(json: string): Owner | null {
  try {
    const owner = decode(OWNER, JSON.parse(json) ?? {});
    return owner.created === null ? null : owner;
  } catch {
    return null;
  }
}

/** The metadata as the element that stands in `<metadata>`. */
export function metadataXml(metadata: MachineMetadata): Xml {
  return xml`
    <gci:machine xmlns:gci="${NAMESPACE}" ${attributesXml(encode(KEYS, metadata))} />
  `;
}

/** Reads that element. */
export function parseMetadata(element: string): MachineMetadata {
  return decode(KEYS, rootOf(element)?.attributes ?? {});
}

/** The metadata of a running domain, or null if the domain is not ours. */
export async function readMetadata(domain: Domain): Promise<MachineMetadata | null> {
  const element = await domain.metadata(NAMESPACE);
  return element === null ? null : parseMetadata(element);
}

/** As {@linkcode readMetadata}; null also if the domain has ended just now. */
export function findMetadata(domain: Domain): Promise<MachineMetadata | null> {
  return orNull(VIR_ERR.NO_DOMAIN, readMetadata(domain));
}

/** Replaces the metadata of a running domain. */
export function writeMetadata(domain: Domain, metadata: MachineMetadata): Promise<void> {
  const element = xml`
    <machine ${attributesXml(encode(KEYS, metadata))} />
  `; // libvirt itself adds the namespace
  return domain.setMetadata(NAMESPACE, PREFIX, element.toString());
}
