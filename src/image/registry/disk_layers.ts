// SPDX-License-Identifier: GPL-2.0-or-later
import { factsIn, type ImageFacts, TITLE } from "./layout.ts";
import { type Descriptor, type Manifest, unusable } from "./manifest.ts";
import { quoted } from "../../quoted.ts";

/** Which layers of an image are its disk, and how. */
export type DiskLayers =
  /** All of them in a row, as `template push` made them. */
  | { readonly kind: "parts"; readonly layers: readonly Descriptor[]; readonly facts: ImageFacts }
  /** One, which is the disk's file, perhaps packed. */
  | { readonly kind: "file"; readonly layers: readonly [Descriptor] }
  /** Archives, the last of which that has `disk/NAME` has the disk: a containerDisk of KubeVirt. */
  | { readonly kind: "archives"; readonly layers: readonly Descriptor[] };

const DISK_FILE = /\.(?:qcow2|raw|img)(?:\.(?:zst|zstd|gz))?$/i;
const ARCHIVE = /[./]tar(?:[.+]|$)/;
const MOST_ARCHIVES = 20;

/** Formats of other programs, whose disks consist of parts in a way of their own. */
const OTHER_FORMATS = [
  ["tart", /^application\/vnd\.cirruslabs\.tart\./],
  ["vetu", /^application\/vnd\.cirruslabs\.vetu\./],
] as const;

/** Finds the disk in the image that messages call `name`. Throws SystemFailure if it has none. */
export function chooseDisk(manifest: Manifest, name: string): DiskLayers {
  const { layers, config, artifactType = "" } = manifest;
  refuseOtherFormats([artifactType, ...[config, ...layers].map((it) => it.mediaType)], name);
  const facts = factsIn(manifest.annotations ?? {});
  if (facts !== null && layers.length > 0) return { kind: "parts", layers, facts };
  const files = layers.filter((layer) => DISK_FILE.test(titleOf(layer)));
  if (files.length > 1) {
    throw unusable(name, `it has several disks: ${quoted(files.map(titleOf).join(", "))}`);
  }
  const archives = layers.filter((layer) => titleOf(layer) === "" && ARCHIVE.test(layer.mediaType));
  const file = files[0] ?? (layers.length === 1 && archives.length === 0 ? layers[0] : undefined);
  if (file !== undefined) return { kind: "file", layers: [file] };
  if (archives.length > MOST_ARCHIVES) {
    throw unusable(name, `it has ${archives.length} layers, as no disk for KubeVirt has`);
  }
  if (archives.length > 0) return { kind: "archives", layers: archives };
  const types = [artifactType, config.mediaType].filter((type) => type !== "").join(", ");
  throw unusable(
    name,
    `none of its ${layers.length} layers is a disk (${quoted(types)})`,
    "Use an image that libvirt-gci template push or oras push made, or a containerDisk",
  );
}

/** What the layer is called as a file; "" if it is not. */
function titleOf({ annotations }: Descriptor): string {
  return annotations?.[TITLE] ?? "";
}

function refuseOtherFormats(types: readonly string[], name: string): void {
  for (const [program, pattern] of OTHER_FORMATS) {
    if (!types.some((type) => pattern.test(type))) continue;
    throw unusable(
      name,
      `it is in ${program}'s own format, which is not supported`,
      `Use an image of another format, or add the disk's file that ${program} has of it`,
    );
  }
}
