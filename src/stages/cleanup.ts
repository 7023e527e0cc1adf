// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { readRecord } from "../machine/record.ts";
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
  using domain = await connection.findDomain(machine);
  if (domain !== null) {
    if (await readRecord(domain) === null) {
      throw new SystemFailure({
        what: `The domain "${machine}" was not made by libvirt-gci, so it stays as it is`,
        advice: `See the domains of this host: virsh list --all --title`,
      });
    }
    await domain.destroy();
  }
  using pool = await connection.findPool(config.overlayPool);
  const active = pool !== null && await pool.isActive();
  const volumes = active ? await deleteVolumes(connection, pool, machine) : [];
  log(
    domain === null && volumes.length === 0
      ? `There is no machine "${machine}"`
      : `Removed the machine "${machine}"`,
  );
}
