// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import type { Connection } from "../libvirt/connection.ts";
import {
  type Domain,
  VIR_DOMAIN_START_RESET_NVRAM,
  VIR_DOMAIN_START_VALIDATE,
} from "../libvirt/domain.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import { domainXml, type MachineDomain } from "./domain_xml.ts";
import type { Template } from "./template.ts";
import { createOverlay, createRawVolume, volumeName } from "./volumes.ts";

/** Where the volumes of a machine are on the hypervisor's host. */
export type VolumePaths = Pick<
  MachineDomain,
  "overlayPath" | "consolePath" | "seedPath" | "nvramPath"
>;

/** What the volumes of a machine are made from. */
export interface VolumePlan {
  readonly template: Template;
  /** The size of the disk, if it is to be more than the template's. */
  readonly diskGib: number | null;
  /** The cloud-init image, if the machine gets one. */
  readonly seed: Uint8Array<ArrayBuffer> | null;
  /** Whether UEFI firmware boots the machine. */
  readonly efi: boolean;
}

/** Makes the volumes of a machine. Throws SystemFailure. */
export async function createVolumes(
  pool: StoragePool,
  machine: string,
  plan: VolumePlan,
): Promise<VolumePaths> {
  try {
    return await tryCreateVolumes(pool, machine, plan);
  } catch (cause) {
    throw new SystemFailure({
      what: `Cannot make the disks of the machine "${machine}" in the storage pool "${pool.name}"`,
      cause,
      advice: `See what space it has left: virsh pool-info ${pool.name}`,
    });
  }
}

async function tryCreateVolumes(
  pool: StoragePool,
  machine: string,
  { template, diskGib, seed, efi }: VolumePlan,
): Promise<VolumePaths> {
  const capacityBytes = (diskGib ?? 0) * 1024 ** 3;
  using overlay = await createOverlay(pool, machine, { template, capacityBytes });
  const createPath = async (name: string, bytes: Uint8Array<ArrayBuffer>): Promise<string> => {
    using volume = await createRawVolume(pool, name, bytes);
    return await volume.path();
  };
  const empty = new Uint8Array();
  return {
    overlayPath: await overlay.path(),
    consolePath: await createPath(volumeName(machine, "console"), empty),
    seedPath: seed && await createPath(volumeName(machine, "seed"), seed),
    nvramPath: efi ? await createPath(volumeName(machine, "nvram"), empty) : null,
  };
}

/** Starts the machine as a transient domain: once it stops, it is gone. Throws SystemFailure. */
export async function startMachine(
  connection: Connection,
  machine: MachineDomain,
): Promise<Domain> {
  // The volume for the firmware's variables is empty until libvirt fills it from their template.
  const nvramFlag = machine.nvramPath === null ? 0 : VIR_DOMAIN_START_RESET_NVRAM;
  try {
    return await connection.createDomain(
      machine.name,
      domainXml(machine).toString(),
      VIR_DOMAIN_START_VALIDATE | nvramFlag,
    );
  } catch (cause) {
    throw new SystemFailure({
      what: `Cannot start the machine "${machine.name}"`,
      cause,
      advice: `See what QEMU says in /var/log/libvirt/qemu/${machine.name}.log on the host, and ` +
        "what the settings ask for",
    });
  }
}
