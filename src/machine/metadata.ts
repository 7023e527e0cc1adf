// SPDX-License-Identifier: GPL-2.0-or-later
import type { Domain } from "../libvirt/domain.ts";
import { orNull, VIR_ERR } from "../libvirt/error.ts";
import { rootOf } from "../read_xml.ts";
import { attributesXml, type Xml, xml } from "../xml.ts";

/** The XML namespace of our element in a domain's `<metadata>`. It marks the domain as ours. */
export const NAMESPACE = "urn:libvirt-gci:machine:1";
const PREFIX = "gci";

/** How a value is read from text and written as text. A missing value is empty text. */
interface Field<T> {
  readonly read: (text: string) => T;
  readonly write: (value: T) => string;
}

const text: Field<string> = { read: (text) => text, write: (text) => text };

/** Milliseconds since 1970, or null. The text is ISO 8601. */
const time: Field<number | null> = {
  read: (text) => Number.isNaN(Date.parse(text)) ? null : Date.parse(text),
  write: (ms) => ms === null ? "" : new Date(ms).toISOString(),
};

const count: Field<number | null> = {
  read: (text) => /^\d+$/.test(text) ? Number(text) : null,
  write: (number) => String(number ?? ""),
};

const flag: Field<boolean> = {
  read: (text) => text === "yes",
  write: (isSet) => isSet ? "yes" : "",
};

/**
 * The fields, in the order of the XML. The domain has all of them, the owner's volume those of
 * {@linkcode OWNER}. The names stay as they are, because machines of older versions have them.
 */
const FIELDS = {
  job: text, // GitLab's id of it; empty by hand
  project: text, // the path of the job's project; empty by hand
  template: text, // its name in the settings
  created: time,
  deadline: time, // when GitLab has certainly ended the job, or the end of a kept machine
  attemptDir: text, // the directory that GitLab Runner removes after the attempt; empty by hand
  runner: text, // the processMark() of GitLab Runner, or of the process that creates it for later
  host: text, // the hostMark() of that directory and that process
  mac: text, // its network card's
  user: text, // the user to log in as
  port: count, // its SSH server's
  key: text, // the file of the private key to log in with
  shell: text, // for the job's scripts
  address: text, // empty until it is ready
  hostKey: text, // the SHA-256 of its SSH host key; empty until that is known
  isRunner: flag, // whether `runner` is certainly GitLab Runner, not a script around a stage
  keepMinutes: count, // how long to keep it after a failure
  failed: text, // the first stage of the job that failed and has not passed since
  promisedUntil: time, // how long the job's log promises to keep it after that failure
  silent: flag, // whether it has not answered since a script of its job was cancelled
  keptUntil: time, // how long to keep it, whether its job fails or not; null if that was not set
  machine: text, // on a standby machine: the name of the job's machine
};

type Key = keyof typeof FIELDS;
const KEYS = Object.keys(FIELDS) as Key[];
// deno-fmt-ignore
const OWNER =
  ["job", "project", "created", "deadline", "attemptDir", "runner", "host", "isRunner"] as const;

/** The metadata of a machine's domain: all that a later stage needs to know. */
export type MachineMetadata = {
  readonly [K in Key]: ReturnType<(typeof FIELDS)[K]["read"]>;
};

/** Who has a machine, and whether they still need it. */
export type Owner = Pick<MachineMetadata, (typeof OWNER)[number]>;

/** The values as texts, in the order of the keys. */
function encode<K extends Key>(
  keys: readonly K[],
  values: Pick<MachineMetadata, K>,
): Record<string, string> {
  const write = (key: K): string => (FIELDS[key] as Field<unknown>).write(values[key]);
  return Object.fromEntries(keys.map((key) => [key, write(key)]));
}

/** The values of these texts. An absent or wrong text gives a missing value. */
function decode<K extends Key>(
  keys: readonly K[],
  texts: Readonly<Record<string, unknown>>,
): Pick<MachineMetadata, K> {
  const read = (key: K): unknown => FIELDS[key].read(String(texts[key] ?? ""));
  return Object.fromEntries(keys.map((key) => [key, read(key)])) as Pick<MachineMetadata, K>;
}

/** Metadata without any value. */
export const EMPTY_METADATA: MachineMetadata = decode(KEYS, {});

/** Whether the machine was kept after its job: then both times are the same. */
export function isKept({ keptUntil, deadline }: MachineMetadata): boolean {
  return keptUntil !== null && keptUntil === deadline;
}

/** The content of an owner's volume. */
export function ownerJson(owner: Owner): string {
  return `${JSON.stringify(encode(OWNER, owner))}\n`;
}

/** Reads the content of an owner's volume; null if it is incomplete. */
export function parseOwner(json: string): Owner | null {
  try {
    const owner = decode(OWNER, JSON.parse(json) ?? {});
    return owner.created === null ? null : owner;
  } catch {
    return null;
  }
}

/** The metadata as the element within `<metadata>`. */
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

/** As {@linkcode readMetadata}, or null if the domain has just ended. */
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
