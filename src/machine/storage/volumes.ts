// SPDX-License-Identifier: GPL-2.0-or-later
import { isLibvirtError, VIR_ERR } from "../../libvirt/error.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Volume } from "../../libvirt/volume.ts";
import { ofKind, volumeName } from "./volume_names.ts";
import { Problems } from "../../problems.ts";
import { find, rootOf, textAt } from "../../read_xml.ts";
import { retry } from "../../wait.ts";
import { type Xml, xml } from "../../xml.ts";

/** The base of an overlay. */
export type Base = Pick<VolumeFacts, "path" | "format" | "capacityBytes">;

/** Creates a qcow2 overlay, at least as large as its base. The caller disposes of the handle. */
export function createOverlay(
  pool: StoragePool,
  name: string,
  { template, capacityBytes }: { readonly template: Base; readonly capacityBytes: number },
): Promise<Volume> {
  const overlay = xml`
    <volume type="file">
      <name>${name}</name>
      <capacity unit="bytes">${Math.max(capacityBytes, template.capacityBytes)}</capacity>
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
  return pool.createVolume(name, overlay.toString());
}

/** Creates a raw volume of this size. The caller disposes of the handle. */
export function createRawVolume(pool: StoragePool, name: string, bytes: number): Promise<Volume> {
  return pool.createVolume(name, rawXml(name, bytes).toString());
}

/**
 * Creates a volume for an image of so many bytes, to which QEMU's user may not write. It takes no space
 * before it is written. The caller disposes of the handle.
 */
export function createImageVolume(pool: StoragePool, name: string, bytes: number): Promise<Volume> {
  const image = xml`
    <volume type="file">
      <name>${name}</name>
      <capacity unit="bytes">${bytes}</capacity>
      <allocation unit="bytes">0</allocation>
      <target>
        <format type="raw" />
        <permissions>
          <mode>0400</mode>
        </permissions>
      </target>
    </volume>
  `;
  return pool.createVolume(name, image.toString());
}

/** Creates a volume with this value as JSON. */
export async function writeJson(pool: StoragePool, name: string, value: unknown): Promise<void> {
  const bytes = new TextEncoder().encode(`${JSON.stringify(value)}\n`);
  using volume = await createRawVolume(pool, name, bytes.length);
  await volume.upload(bytes);
}

/** The value in a volume; null if there is none, or not yet. */
export async function readJson(pool: StoragePool, name: string): Promise<unknown> {
  try {
    using volume = await pool.findVolume(name);
    return volume && JSON.parse(new TextDecoder().decode(await volume.download(0)));
  } catch (error) {
    if (error instanceof SyntaxError) return null; // not complete yet
    if (
      isLibvirtError(error, VIR_ERR.NO_STORAGE_VOL, VIR_ERR.OPERATION_INVALID, VIR_ERR.NO_SUPPORT)
    ) return null; // just deleted or created; the test driver
    throw error;
  }
}

/** Creates a raw volume with the bytes of another. The caller disposes of the handle. */
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
 * Deletes the machine's volumes but the owner's and the guest's files, and gives their names. With
 * `mayHaveNamed`, it lists the pool to find the empty volumes too. Throws the first error in the end.
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
  // Last: while it exists, prepare refuses the name.
  await tryDelete(volumeName(machine, "overlay"));
  if (problems.errors.length > 0) throw problems.errors[0];
  return deleted;
}

/** Deletes the owner's volume, which frees the machine's name. */
export function releaseName(pool: StoragePool, machine: string): Promise<boolean> {
  return removeVolume(pool, volumeName(machine, "owner"));
}

/** Whether it deleted the volume. Of many who try at once, one does. */
export async function removeVolume(pool: StoragePool, name: string): Promise<boolean> {
  using volume = await pool.findVolume(name);
  if (volume === null) return false;
  // libvirt refuses while another process, such as a gc, reads it.
  const isTransient = (error: unknown) => isLibvirtError(error, VIR_ERR.OPERATION_INVALID);
  return await retry(() => volume.delete(), { tries: 20, isTransient });
}

/** A volume, by its XML (https://libvirt.org/formatstorage.html#storage-volume-xml). */
export interface VolumeFacts {
  /** On the hypervisor's host. */
  readonly path: string;
  /** As libvirt detected it, such as `qcow2`; `dir` is a directory. */
  readonly format: string;
  readonly capacityBytes: number;
  /** The time of the last write as libvirt writes it; empty if the kind of pool has none. */
  readonly modified: string;
  /** The path of its backing file, or null. */
  readonly backing: string | null;
}

/** Reads a volume's XML. */
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
