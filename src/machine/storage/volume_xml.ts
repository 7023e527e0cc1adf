// SPDX-License-Identifier: GPL-2.0-or-later
import { find, rootOf, textAt } from "../../read_xml.ts";

/** What the XML of a volume states (https://libvirt.org/formatstorage.html#storage-volume-xml). */
export interface VolumeFacts {
  /** Where it is on the hypervisor's host. */
  readonly path: string;
  /** Such as `qcow2`, as libvirt found it; `dir` is a directory. */
  readonly format: string;
  readonly capacityBytes: number;
  /** When it was last written to, as libvirt has it; empty where the kind of pool has no such time. */
  readonly modified: string;
  /** The path of the file that it stands on; null if it stands alone. */
  readonly backing: string | null;
}

/** Reads them. */
export function readVolumeXml(volumeXml: string): VolumeFacts {
  const root = rootOf(volumeXml);
  return {
    path: textAt(root, "target", "path") ?? "",
    format: find(root, "target", "format")?.attributes["type"] ?? "raw",
    capacityBytes: Number(textAt(root, "capacity") ?? 0),
    modified: textAt(root, "target", "timestamps", "mtime") ?? "",
    backing: textAt(root, "backingStore", "path"),
  };
}
