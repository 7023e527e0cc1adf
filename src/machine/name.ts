// SPDX-License-Identifier: GPL-2.0-or-later
import { type Failure, SystemFailure } from "../errors.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Domain } from "../libvirt/domain.ts";
import { isLibvirtError, VIR_ERR } from "../libvirt/error.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import { type Context, quiet } from "./context.ts";
import type { MachineSpec } from "./machine.ts";
import { type Owner, ownerJson } from "./metadata.ts";
import { findOwner } from "./owner.ts";
import { removeMachineSafely } from "./remove.ts";
import { orExplained } from "./storage/disks.ts";
import { volumeName } from "./storage/volume_names.ts";
import { createRawVolume } from "./storage/volumes.ts";
import { whyUnneeded } from "./unneeded.ts";

/** The machine's name is taken. */
export class NameTaken extends SystemFailure {}

/**
 * Reserves the name of a new machine. Throws NameTaken or SystemFailure.
 *
 * The name of a job's machine follows from the job (job.ts), so every stage finds the machine without
 * any state: domain, volumes, network filter and key file are named for it. The name is taken as long as
 * the owner's volume exists, which prepare creates first and removal deletes last. A standby machine
 * keeps its own name; a volume of the job's machine refers to it (standby/waiting.ts).
 */
export async function reserveMachine(
  { name, owner, reserve }: MachineSpec,
  pool: StoragePool,
  context: Context,
): Promise<void> {
  const { host: { connection }, report, signal } = context;
  if (reserve === "free") await refuseTakenName(name, connection, pool);
  signal.throwIfAborted();
  report.steps.skip();
  const isOurs = reserve === "free"
    ? await reserveName(pool, name, owner)
    : await reserveAbandonedName(pool, { name, owner }, context);
  if (!isOurs) throw new NameTaken(takenBy(name, EARLIER_DISK));
}

/** Whether it could reserve the name by creating the owner's volume. Throws SystemFailure. */
export function reserveName(pool: StoragePool, machine: string, owner: Owner): Promise<boolean> {
  return orExplained(pool, machine, async () => {
    const bytes = new TextEncoder().encode(ownerJson(owner));
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
      await volume.delete().catch(() => {}); // the first error says more
      throw error;
    }
    return true;
  });
}

/** As {@linkcode reserveName}, but takes over the name of a dead process and removes what it left. */
export async function reserveAbandonedName(
  pool: StoragePool,
  { name, owner }: { readonly name: string; readonly owner: Owner },
  context: Context,
): Promise<boolean> {
  if (await reserveName(pool, name, owner)) return true;
  const other = await findOwner(pool, name);
  if (other === "unknown") return false;
  if (other !== null) {
    if (!("why" in other) && await whyUnneeded(other) === null) return false;
    await removeMachineSafely(name, quiet(context));
  }
  return await reserveName(pool, name, owner);
}

/** Fails early for a name that {@linkcode reserveName} would refuse, or that a foreign domain has. */
async function refuseTakenName(
  machine: string,
  connection: Connection,
  pool: StoragePool,
): Promise<void> {
  using domain = await Domain.find(connection, machine);
  if (domain !== null) throw new NameTaken(takenBy(machine, "a domain"));
  using owner = await pool.findVolume(volumeName(machine, "owner"));
  using overlay = await pool.findVolume(volumeName(machine, "overlay"));
  if (owner !== null || overlay !== null) throw new NameTaken(takenBy(machine, EARLIER_DISK));
}

const EARLIER_DISK = "a disk of an earlier machine";

function takenBy(machine: string, what: string): Failure {
  return {
    what: `There is ${what} "${machine}" already`,
    advice:
      `Remove the machine if it is no longer needed: libvirt-gci cleanup --machine ${machine}; ` +
      "or choose another name",
  };
}
