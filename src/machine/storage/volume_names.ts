// SPDX-License-Identifier: GPL-2.0-or-later

const HASH = "[\\da-f]{16}";
const WARM_ID = "[\\da-f]{10}";
const VERSION_ID = "[\\da-f]{10}";
const PROCESS = "\\d+-\\d+-[\\da-f]{8}";

/** A pattern for the names of standby machines. */
export const STANDBY_NAME = `standby-${HASH}`;

/**
 * The kinds of our volumes, with the patterns of their fields. libvirt's volumes have no metadata, so the
 * name says what a volume is: `NAME.KIND.libvirt-gci`, or `NAME.FIELD-FIELD.KIND.libvirt-gci`. NAME is the
 * machine's, or the template's of a warm image or of a version of a template; it may have dots.
 */
const FIELDS = {
  owner: [],
  overlay: [],
  ram: [],
  seed: [],
  credential: [],
  guest: [],
  /** Number, memory in MiB, process, host. */
  queue: ["\\d+", "\\d+", PROCESS, "[\\da-f]*"],
  /** Number, hash of the project. */
  project: ["\\d+", HASH],
  assigned: [STANDBY_NAME],
  waiting: [HASH],
  "warm-disk": [WARM_ID],
  "warm-ram": [WARM_ID],
  "warm-info": [WARM_ID],
  template: [VERSION_ID],
  "template-info": [VERSION_ID],
  /** Id, process, host. */
  "template-upload": [VERSION_ID, PROCESS, "[\\da-f]*"],
} as const;

/** A kind of volume. */
export type VolumeKind = keyof typeof FIELDS;

type Each<T extends readonly unknown[], Value> = { readonly [I in keyof T]: Value };

/** The parts of a volume's name. */
export interface VolumeName<K extends VolumeKind> {
  readonly volume: string;
  /** The machine's or the template's. */
  readonly name: string;
  readonly kind: K;
  readonly fields: Each<(typeof FIELDS)[K], string>;
}

const PATTERNS = new Map(
  Object.entries(FIELDS).map(([kind, fields]) => {
    const groups = fields.map((field) => `(${field})`).join("-");
    return [kind, new RegExp(`^(.+)${groups && `\\.${groups}`}\\.${kind}\\.libvirt-gci$`)];
  }),
);

/** The name of a volume. */
export function volumeName<K extends VolumeKind>(
  name: string,
  kind: K,
  ...fields: Each<(typeof FIELDS)[K], string | number>
): string {
  return [name, ...(fields.length === 0 ? [] : [fields.join("-")]), kind, "libvirt-gci"].join(".");
}

/** The parts of a volume's name; null if it is not ours. */
export function parseVolume(volume: string): VolumeName<VolumeKind> | null {
  const kind = volume.split(".").at(-2) ?? "";
  const match = PATTERNS.get(kind)?.exec(volume);
  if (!match) return null;
  const [, name, ...fields] = match;
  return { volume, name, kind, fields } as unknown as VolumeName<VolumeKind>;
}

/** The volumes of these kinds. */
export function ofKind<K extends VolumeKind>(
  volumes: readonly string[],
  ...kinds: K[]
): VolumeName<K>[] {
  const isOfKind = (name: VolumeName<VolumeKind> | null): name is VolumeName<K> =>
    kinds.some((kind) => kind === name?.kind);
  return volumes.map(parseVolume).filter(isOfKind);
}

/** The machine of a volume, or null. */
export function machineOfVolume(volume: string): string | null {
  const parsed = parseVolume(volume);
  return parsed === null || /^(warm|template)/.test(parsed.kind) ? null : parsed.name;
}

/** What people call a volume of the template pool: the name of the template of which it is a version. */
export function shownName(volume: string): string {
  const parsed = parseVolume(volume);
  return parsed?.kind === "template" ? parsed.name : volume;
}

/** Whether a volume is ours by its name: no name that a job gives leads to it. */
export function isOurVolume(volume: string): boolean {
  return volume.endsWith(".libvirt-gci");
}
