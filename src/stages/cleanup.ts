// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import type { Connection } from "../libvirt/connection.ts";
import { isLibvirtError, VIR_ERR } from "../libvirt/error.ts";
import { readRecord } from "../machine/record.ts";
import { lookupActivePool } from "../machine/template.ts";
import { deleteVolumes } from "../machine/volumes.ts";
import type { Stage } from "./stage.ts";

/**
 * Removes the machine of this name and all that belongs to it, whatever a stage left of it. Succeeds
 * if there is nothing. Throws SystemFailure if the domain of this name is not ours.
 */
export async function cleanup(
  machine: string,
  { connection, config, log }: Pick<Stage, "connection" | "config" | "log">,
): Promise<void> {
  const destroyed = await destroyMachine(machine, connection);
  const deleted = await deleteDisks(machine, connection, config.overlayPool);
  log(
    destroyed || deleted ? `Removed the machine "${machine}"` : `There is no machine "${machine}"`,
  );
}

/** Whether there was a domain to destroy. */
async function destroyMachine(machine: string, connection: Connection): Promise<boolean> {
  using domain = await connection.findDomain(machine);
  if (domain === null) return false;
  try {
    if (await readRecord(domain) !== null) {
      await domain.destroy();
      return true;
    }
  } catch (error) {
    if (isLibvirtError(error, VIR_ERR.NO_DOMAIN)) return true; // it ended by itself just now
    throw error;
  }
  throw new SystemFailure({
    what: `The domain "${machine}" was not made by libvirt-gci, so it stays as it is`,
    advice: `See the domains of this host: virsh list --all --title`,
  });
}

/** Whether there was a volume to delete. Without the pool there is none. */
async function deleteDisks(
  machine: string,
  connection: Connection,
  poolName: string,
): Promise<boolean> {
  using found = await connection.findPool(poolName);
  if (found === null) return false;
  using pool = await lookupActivePool(connection, poolName, "overlay_pool");
  return (await deleteVolumes(connection, pool, machine)).length > 0;
}
