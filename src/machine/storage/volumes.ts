// SPDX-License-Identifier: GPL-2.0-or-later
import { isLibvirtError, VIR_ERR } from "../../libvirt/error.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Volume } from "../../libvirt/volume.ts";
import { ofKind, volumeName } from "./volume_names.ts";
import { Problems } from "../../problems.ts";
import { find, rootOf, textAt } from "../../read_xml.ts";
import { retry } from "../../wait.ts";
import { type Xml, xml } from "../../xml.ts";

/** What an overlay stands on. */
export interface Base {
  /** Where it is on the hypervisor's host. */
  readonly path: string;
  /** `qcow2` or `raw`, as libvirt found it. */
  readonly format: string;
  readonly capacityBytes: number;
}

/**
 * Makes a disk which reads from its base what nobody wrote. `capacityBytes` holds if it is more than
 * the base's. The caller disposes of the handle.
 */
export function createOverlay(
  pool: StoragePool,
  name: string,
  { template, capacityBytes }: { readonly template: Base; readonly capacityBytes: number },
): Promise<Volume> {
  return pool.createVolume(
    name,
    overlayXml(name, template, Math.max(capacityBytes, template.capacityBytes)).toString(),
  );
}

/** The overlay as libvirt's volume XML (https://libvirt.org/formatstorage.html). */
function overlayXml(name: string, template: Base, capacityBytes: number): Xml {
  return xml`
    <volume type="file">
      <name>${name}</name>
      <capacity unit="bytes">${capacityBytes}</capacity>
      <target>
        <format type="qcow2" />
        <compat>1.1</compat>
      </target>
      <backingStore>
        <path>${template.path}</path>
        <format type="${template.format}" />
      </backingStore>
    </volume>
  `;
}

/** Makes a volume for as many plain bytes. The caller disposes of the handle. */
export function createRawVolume(pool: StoragePool, name: string, bytes: number): Promise<Volume> {
  return pool.createVolume(name, rawXml(name, bytes).toString());
}

/** Makes a volume with the plain bytes of another. The caller disposes of the handle. */
export function copyRawVolume(pool: StoragePool, name: string, source: Volume): Promise<Volume> {
  return pool.copyVolume(name, rawXml(name, 0).toString(), source); // libvirt takes its size
}

function rawXml(name: string, bytes: number): Xml {
  return xml`
    <volume type="file">
      <name>${name}</name>
      <capacity unit="bytes">${bytes}</capacity>
      <target>
        <format type="raw" />
      </target>
    </volume>
  `;
}

/**
 * Deletes all volumes of the machine that are there but its owner's and what the guest wrote, and gives
 * their names; the empty ones whose names say all, which only a list of the pool finds, if it may have
 * such. It goes on where it cannot delete one, and throws that error in the end.
 */
export async function removeVolumes(
  pool: StoragePool,
  machine: string,
  { mayHaveNamed }: { readonly mayHaveNamed: boolean },
): Promise<string[]> {
  const deleted: string[] = [];
  const problems = new Problems();
  const tryDelete = (name: string): Promise<void> =>
    problems.collect(async () => {
      if (await removeVolume(pool, name)) deleted.push(name);
    });
  for (const kind of ["ram", "seed", "credential"] as const) {
    await tryDelete(volumeName(machine, kind));
  }
  if (mayHaveNamed) {
    const named = ofKind(await pool.volumeNames(), "queue", "project", "assigned", "waiting");
    for (const { volume, name } of named) if (name === machine) await tryDelete(volume);
  }
  // While it is there, prepare takes the name for used.
  await tryDelete(volumeName(machine, "overlay"));
  if (problems.errors.length > 0) throw problems.errors[0];
  return deleted;
}

/** Deletes the volume that says whose the machine is: the last thing, which frees its name. */
export function releaseName(pool: StoragePool, machine: string): Promise<boolean> {
  return removeVolume(pool, volumeName(machine, "owner"));
}

/** Whether there was such a volume, which is gone now; of many who delete it, one hears that. */
export async function removeVolume(pool: StoragePool, name: string): Promise<boolean> {
  using volume = await pool.findVolume(name);
  if (volume === null) return false;
  // libvirt refuses while another process, such as a gc, reads it.
  const isTransient = (error: unknown) => isLibvirtError(error, VIR_ERR.OPERATION_INVALID);
  return await retry(() => volume.delete(), { tries: 20, isTransient });
}

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
