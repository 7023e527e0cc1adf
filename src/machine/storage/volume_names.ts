// SPDX-License-Identifier: GPL-2.0-or-later

const HASH = "[\\da-f]{16}";
const WARM_ID = "[\\da-f]{10}";

/** A pattern for the names of machines that wait for jobs. */
export const STANDBY_NAME = `standby-${HASH}`;

/**
 * The kinds of our volumes, each with the patterns of its fields. libvirt's volumes have no metadata, so
 * their names say what they are, in pools that may hold the volumes of others too:
 * `NAME.KIND.libvirt-gci`, or `NAME.FIELD-FIELD.KIND.libvirt-gci`. No field has a dot. NAME is the
 * machine's, which may have dots; of a warm image's volumes it is the template's.
 */
const FIELDS = {
  owner: [],
  overlay: [],
  ram: [],
  seed: [],
  credential: [],
  guest: [],
  /** Number, memory in MiB, process, host. */
  queue: ["\\d+", "\\d+", "\\d+-\\d+-[\\da-f]{8}", "[\\da-f]*"],
  /** Number, hash of the project. */
  project: ["\\d+", HASH],
  assigned: [STANDBY_NAME],
  waiting: [HASH],
  "warm-disk": [WARM_ID],
  "warm-ram": [WARM_ID],
  "warm-info": [WARM_ID],
} as const;

/** What a volume is for. */
export type VolumeKind = keyof typeof FIELDS;

type Each<T extends readonly unknown[], Value> = { readonly [I in keyof T]: Value };

/** The parts of a volume's name. */
export interface VolumeName<K extends VolumeKind> {
  readonly volume: string;
  /** The machine's; of a warm image the template's. */
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

/** The parts of a volume's name; null if it is none of ours. */
export function parseVolume(volume: string): VolumeName<VolumeKind> | null {
  const kind = volume.split(".").at(-2) ?? "";
  const match = PATTERNS.get(kind)?.exec(volume);
  if (!match) return null;
  const [, name, ...fields] = match;
  return { volume, name, kind, fields } as unknown as VolumeName<VolumeKind>;
}

/** Those of these volumes that are of these kinds. */
export function ofKind<K extends VolumeKind>(
  volumes: readonly string[],
  ...kinds: K[]
): VolumeName<K>[] {
  const isOfKind = (name: VolumeName<VolumeKind> | null): name is VolumeName<K> =>
    kinds.some((kind) => kind === name?.kind);
  return volumes.map(parseVolume).filter(isOfKind);
}

/** The machine whose volume this is; null if it is none's. */
export function machineOfVolume(volume: string): string | null {
  const parsed = parseVolume(volume);
  return parsed === null || parsed.kind.startsWith("warm") ? null : parsed.name;
}

/** Whether a volume is ours by its name, and so is no template. */
export function isOurVolume(volume: string): boolean {
  return volume.endsWith(".libvirt-gci");
}
