// SPDX-License-Identifier: GPL-2.0-or-later
import { FilterBinding, NetworkFilter } from "../libvirt/network_filter.ts";
import { GIB } from "../bytes.ts";
import { virsh } from "../shell.ts";
import { SystemFailure } from "../errors.ts";
import type { Connection } from "../libvirt/connection.ts";
import { isLibvirtError, VIR_ERR } from "../libvirt/error.ts";
import {
  Domain,
  type DomainState,
  VIR_DOMAIN_START_RESET_NVRAM,
  VIR_DOMAIN_START_VALIDATE,
} from "../libvirt/domain.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import { sleep } from "../wait.ts";
import { endedFailure } from "./network/address.ts";
import {
  type CardOf,
  domainXml,
  interfaceXml,
  type MachineDomain,
  withFilterLater,
} from "./domain_xml.ts";
import { cardDevices, forwardLinkLocal, mayForwardLinkLocal } from "./network/link_local.ts";
import { createGuestDirectory, guestPaths } from "./storage/guest_files.ts";
import { findKvmFault } from "./kvm/kvm_fault.ts";
import { throwIfLost } from "./lost_connection.ts";
import type { Owner } from "./owner.ts";
import type { Template } from "./storage/template.ts";
import {
  type Base,
  createOverlay,
  createRawVolume,
  type VolumeKind,
  volumeName,
} from "./storage/volumes.ts";

/** Where the volumes of a machine are on the hypervisor's host, besides its disk. */
export type VolumePaths = Pick<
  MachineDomain,
  "consolePath" | "seedPath" | "credentialPath" | "nvramPath"
>;

/** What the other volumes of a machine hold. */
export interface VolumeContents {
  /** The cloud-init image, if the machine gets one. */
  readonly seed: Uint8Array<ArrayBuffer> | null;
  /** The systemd credential, if the machine gets one. */
  readonly credential: Uint8Array<ArrayBuffer> | null;
  /** Whether UEFI firmware boots the machine. */
  readonly efi: boolean;
}

/**
 * Claims the machine's name by the volume that says whose it is. Resolves to whether it is ours now:
 * of two at once, one gets it, and until that volume is deleted nobody else. Throws SystemFailure.
 */
export function reserveName(pool: StoragePool, machine: string, owner: Owner): Promise<boolean> {
  return orExplain(pool, machine, async () => {
    const bytes = new TextEncoder().encode(`${JSON.stringify(owner)}\n`);
    const name = volumeName(machine, "owner");
    const creation = createRawVolume(pool, name, bytes.length);
    using volume = await creation.catch(async (error) => {
      using other = await pool.findVolume(name).catch(() => null); // the first failure counts
      if (other === null) throw error;
      return null;
    });
    if (volume === null) return false;
    try {
      await volume.upload(bytes);
    } catch (error) {
      if (isLibvirtError(error, VIR_ERR.NO_SUPPORT)) return true; // libvirt's test driver
      await volume.delete().catch(() => {}); // as above
      throw error;
    }
    return true;
  });
}

/**
 * Makes the machine's own disk, on top of the template, and gives its path. `diskGib` holds if it
 * is more than the template's. Throws SystemFailure.
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
  return orExplain(pool, machine, async () => {
    const capacityBytes = (diskGib ?? 0) * GIB;
    using overlay = await createOverlay(pool, volume, { template, capacityBytes });
    return await overlay.path();
  });
}

/** Makes the other volumes of a machine. Throws SystemFailure. */
export function createVolumes(
  pool: StoragePool,
  machine: string,
  { seed, credential, efi }: VolumeContents,
): Promise<VolumePaths> {
  const create = async (kind: VolumeKind, bytes: Uint8Array<ArrayBuffer>): Promise<string> => {
    using volume = await createRawVolume(pool, volumeName(machine, kind), bytes.length);
    await volume.upload(bytes);
    return await volume.path();
  };
  return orExplain(pool, machine, async () => {
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

async function orExplain<T>(
  pool: StoragePool,
  machine: string,
  create: () => Promise<T>,
): Promise<T> {
  try {
    return await create();
  } catch (cause) {
    throwIfLost(cause, `made the disks of the machine "${machine}"`);
    throw new SystemFailure({
      fault: "storage",
      what: `Cannot make the disks of the machine "${machine}" in the storage pool "${pool.name}"`,
      cause,
      advice: `See what space it has left, and free some: ${virsh(pool, "pool-info", pool.name)}`,
    });
  }
}

/**
 * Sets the filter of the machine's card, if that has been without at first: now the machine is isolated,
 * as it must be before any job has it. Before, link-local frames begin to meet filters at all, see
 * {@linkcode forwardLinkLocal}. Resolves to whether the filter is new. Until it is set, libvirt answers
 * nothing else about the domain, and the connection nothing at all: so it is one of its own. Throws
 * SystemFailure.
 */
export async function setFilter(
  domain: Domain,
  machine: CardOf,
  { connection: { uri }, connect }: {
    readonly connection: Pick<Connection, "uri">;
    readonly connect: () => Promise<Connection>;
  },
): Promise<boolean> {
  const isSet = withFilterLater(machine).filter === machine.filter;
  const mayForward = mayForwardLinkLocal(uri);
  if (machine.filter === null || isSet && !mayForward) return false;
  await using connection = await connect();
  try {
    using same = await Domain.lookup(connection, domain.name);
    if (mayForward) await forwardLinkLocal(same);
    if (!isSet) await updateCard(same, interfaceXml(machine).toString(), connection);
    return !isSet;
  } catch (cause) {
    throwIfLost(cause, `set the network filter of the machine "${domain.name}"`);
    const state = await stateInTheEnd(domain);
    if (state !== "active") throw endedFailure(domain.name, state, cause);
    throw new SystemFailure({
      fault: "network",
      what: `Cannot isolate the machine "${domain.name}": libvirt does not set its network filter`,
      cause,
      advice: "See what libvirt needs for filters: libvirt-gci doctor",
    });
  }
}

/**
 * Sets the filter. If QEMU ends meanwhile, libvirt (9.0) leaves a binding of the filter "(null)" to the
 * card's device, and then sets no filter for the next card that gets this device: such a binding is
 * deleted, be it of this machine or of an earlier one.
 */
async function updateCard(domain: Domain, cardXml: string, connection: Connection): Promise<void> {
  const devices = cardDevices(await domain.xml());
  try {
    await domain.updateDevice(cardXml);
  } catch (error) {
    if (!await deleteDeadBindings(devices, connection).catch(() => false)) throw error;
    await domain.updateDevice(cardXml).catch(() => {
      throw error; // which says more, if QEMU has ended
    });
  }
}

/** Deletes what binds a filter to these devices that is not there. Says whether there was any. */
async function deleteDeadBindings(
  devices: readonly string[],
  connection: Connection,
): Promise<boolean> {
  let deleted = false;
  for (const device of devices) {
    using binding = await FilterBinding.find(connection, device);
    if (binding === null) continue;
    using filter = await NetworkFilter.find(connection, binding.filterName);
    if (filter !== null) continue;
    await binding.delete();
    deleted = true;
  }
  return deleted;
}

const LOOKS = 10;

/** libvirt may see only a moment later that QEMU has ended. */
async function stateInTheEnd(domain: Domain): Promise<DomainState> {
  for (let look = 1;; look++) {
    const state = await domain.state().catch(() => "active" as const);
    if (state !== "active" || look === LOOKS) return state;
    await sleep(100);
  }
}

/** Starts the machine as a transient domain: once it stops, it is gone. Throws SystemFailure. */
export async function startMachine(
  connection: Connection,
  machine: MachineDomain,
  { template, signal }: { readonly template: Template; readonly signal: AbortSignal },
): Promise<Domain> {
  try {
    return await createDomain(connection, machine, signal);
  } catch (cause) {
    throwIfLost(cause, `started the machine "${machine.name}"`);
    const what = `Cannot start the machine "${machine.name}"`;
    const { explainLock } = await import("./storage/template_writer.ts");
    const locked = await explainLock(cause, template, connection);
    if (locked !== null) throw new SystemFailure({ what, cause: locked });
    const kvm = await findKvmFault({ ...machine, connection }, cause);
    if (kvm !== null) throw new SystemFailure({ what, cause: kvm });
    throw new SystemFailure({
      fault: "start",
      what,
      cause,
      advice: `See what QEMU says in /var/log/libvirt/qemu/${machine.name}.log on the host, and ` +
        "what the settings ask for",
    });
  }
}

const EAGAIN = 11;
const TRIES = 5;
const PAUSE_MS = 200;

/**
 * Creates the domain, and tries again where the kernel tells libvirt to, which libvirt (9.0) hands on: its
 * verifier refuses the program that guards the machine's devices if a signal comes meanwhile.
 */
async function createDomain(
  connection: Connection,
  machine: MachineDomain,
  signal: AbortSignal,
): Promise<Domain> {
  const xml = domainXml(machine).toString();
  // libvirt makes the file for the firmware's variables from their template.
  const nvramFlag = machine.nvramPath === null ? 0 : VIR_DOMAIN_START_RESET_NVRAM;
  for (let tries = 1;; tries++) {
    try {
      return await Domain.create(
        connection,
        machine.name,
        xml,
        VIR_DOMAIN_START_VALIDATE | nvramFlag,
      );
    } catch (error) {
      const isPassing = isLibvirtError(error, VIR_ERR.SYSTEM_ERROR) && error.errno === EAGAIN;
      if (!isPassing || tries === TRIES) throw error;
      await sleep(PAUSE_MS, signal);
      if (signal.aborted) throw error;
    }
  }
}
