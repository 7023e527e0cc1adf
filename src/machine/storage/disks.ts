// SPDX-License-Identifier: GPL-2.0-or-later
import { GIB } from "../../bytes.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { failureOf } from "../context.ts";
import type { MachineDomain } from "../domain_xml.ts";
import { createGuestDirectory, guestPaths } from "./guest_files.ts";
import { volumeName } from "./volume_names.ts";
import { type Base, createOverlay, createRawVolume } from "./volumes.ts";
import { virsh } from "../../shell.ts";

/** The contents of a machine's other volumes. */
export interface VolumeContents {
  /** The image for cloud-init, if any. */
  readonly seed: Uint8Array<ArrayBuffer> | null;
  /** The systemd credential, if any. */
  readonly credential: Uint8Array<ArrayBuffer> | null;
  /** Whether the firmware is UEFI. */
  readonly efi: boolean;
}

/**
 * Creates the machine's disk on top of the template, and gives its path. It is as large as the template if
 * `diskGib` is less. Throws SystemFailure.
 */
export function createDisk(
  pool: StoragePool,
  machine: string,
  { template, diskGib, volume = volumeName(machine, "overlay") }: {
    readonly template: Base;
    readonly diskGib: number | null;
    readonly volume?: string;
  },
): Promise<string> {
  return orExplained(pool, machine, async () => {
    const capacityBytes = (diskGib ?? 0) * GIB;
    using overlay = await createOverlay(pool, volume, { template, capacityBytes });
    return await overlay.path();
  });
}

/** Creates a machine's other volumes, and gives their paths. Throws SystemFailure. */
export function createVolumes(
  pool: StoragePool,
  machine: string,
  { seed, credential, efi }: VolumeContents,
): Promise<Pick<MachineDomain, "consolePath" | "seedPath" | "credentialPath" | "nvramPath">> {
  const create = async (kind: "seed" | "credential", bytes: Uint8Array<ArrayBuffer>) => {
    using volume = await createRawVolume(pool, volumeName(machine, kind), bytes.length);
    await volume.upload(bytes);
    return await volume.path();
  };
  return orExplained(pool, machine, async () => {
    using directory = await createGuestDirectory(pool, machine);
    const paths = guestPaths(await directory.path());
    return {
      consolePath: paths.console,
      seedPath: seed && await create("seed", seed),
      credentialPath: credential && await create("credential", credential),
      nvramPath: efi ? paths.nvram : null,
    };
  });
}

/** Turns a failure into the SystemFailure of the machine's disks. */
export async function orExplained<T>(
  pool: StoragePool,
  machine: string,
  create: () => Promise<T>,
): Promise<T> {
  try {
    return await create();
  } catch (cause) {
    throw failureOf(cause, `created the disks of the machine "${machine}"`, {
      fault: "storage",
      what:
        `Cannot create the disks of the machine "${machine}" in the storage pool "${pool.name}"`,
      advice: `Free space in the pool: ${virsh(pool, "pool-info", pool.name)}`,
    });
  }
}
