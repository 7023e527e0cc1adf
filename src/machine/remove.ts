// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { isKeyFileOf, keyFile, removeKeyFile } from "../guest/key_file.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Domain } from "../libvirt/domain.ts";
import { isLibvirtError, VIR_ERR } from "../libvirt/error.ts";
import { StoragePool } from "../libvirt/storage_pool.ts";
import { type Context, quiet, withReconnect } from "./context.ts";
import type { FoundMachine } from "./inventory.ts";
import { standbysAssignedTo } from "./lookup.ts";
import { type MachineMetadata, readMetadata } from "./metadata.ts";
import { removeFilter } from "./network/filter.ts";
import { acquireStandby, isStandbyName, type Standby } from "./standby/waiting.ts";
import { removeGuestFiles } from "./storage/guest_files.ts";
import { lookupActivePool } from "./storage/pools.ts";
import { releaseName, removeVolumes } from "./storage/volumes.ts";
import { hasProjectLimit } from "../policy/decide.ts";
import { virsh } from "../shell.ts";

/**
 * Removes the machine of this name and all that belongs to it, whatever a stage left of it, and
 * last what says whose it is. Its name alone does not lead to volumes in other pools, nor to a key in
 * the attempt's directory `attemptDir`. Resolves to whether there was anything. Throws SystemFailure if the
 * domain of this name is not ours.
 */
export async function removeMachine(
  machine: string,
  context: Context,
  { volumes = [], attemptDir = "" }: {
    readonly volumes?: FoundMachine["volumes"];
    readonly attemptDir?: string;
  } = {},
): Promise<boolean> {
  const { host, report } = context;
  const { connection, config, directories } = host;
  const pools = [...new Set([config.pools.overlays, ...volumes.map(({ pool }) => pool)])];
  const { destroyed, key, isReady } = await destroyMachine(machine, connection);
  const standbys = destroyed ? [] : await standbysAssignedTo(machine, host);
  for (const standby of standbys) await removeMachine(standby, quiet(context), { attemptDir });
  const removals = [
    removeKeyFile(keyFile(directories.keys, machine)),
    removeKeyFile(keyFile(directories.lastingKeys, machine)),
    // Of a job whose machine is removed by hand, the domain alone knows the attempt's directory.
    isKeyFileOf(machine, key) && removeKeyFile(key),
    attemptDir !== "" && removeKeyFile(keyFile(attemptDir, machine)),
    removeFilter(connection, machine),
    ...pools.map((pool) => {
      const mayHaveNamed = !isReady || isStandbyName(machine) || hasProjectLimit(config);
      return deleteDisks(machine, mayHaveNamed, connection, pool);
    }),
  ];
  await Promise.allSettled(removals); // one that fails ends no other
  let found = destroyed || standbys.length > 0 || (await Promise.all(removals)).includes(true);
  for (const pool of pools) found = await releaseNameIn(machine, connection, pool) || found;
  report.log(found ? `Removed the machine "${machine}"` : `There is no machine "${machine}"`);
  return found;
}

/** Removes a standby machine if it still waits. Resolves to whether it did. */
export async function removeStandby(
  standby: Standby,
  pool: StoragePool,
  context: Context,
): Promise<boolean> {
  if (!await acquireStandby(pool, standby)) return false;
  await removeMachine(standby.name, quiet(context));
  return true;
}

/** As {@linkcode removeMachine}, and once more on a new connection if it fails. */
export async function removeMachineSafely(machine: string, context: Context): Promise<void> {
  await withReconnect(context, (context) => removeMachine(machine, context));
}

/** What there was of a domain. */
interface Destroyed {
  readonly destroyed: boolean;
  /** The file of the key that it let in. */
  readonly key: string;
  /** Whether prepare was through with it. */
  readonly isReady: boolean;
}

async function destroyMachine(machine: string, connection: Connection): Promise<Destroyed> {
  using domain = await Domain.find(connection, machine);
  if (domain === null) return { destroyed: false, key: "", isReady: false };
  let metadata: MachineMetadata | null;
  try {
    metadata = await readMetadata(domain);
    if (metadata !== null) await domain.destroy();
  } catch (error) {
    // It ended by itself just now.
    if (isLibvirtError(error, VIR_ERR.NO_DOMAIN)) {
      return { destroyed: true, key: "", isReady: false };
    }
    throw error;
  }
  if (metadata !== null) {
    return { destroyed: true, key: metadata.key, isReady: metadata.address !== "" };
  }
  throw new SystemFailure({
    what: `The domain "${machine}" was not made by libvirt-gci, so it stays as it is`,
    advice: `See the domains of this host: ${virsh(connection, "list", "--all", "--title")}`,
  });
}

/** Whether there was a volume to delete. Without the pool there is none. */
async function deleteDisks(
  machine: string,
  mayHaveNamed: boolean,
  connection: Connection,
  poolName: string,
): Promise<boolean> {
  using found = await StoragePool.find(connection, poolName);
  if (found === null) return false;
  using pool = await lookupActivePool(connection, poolName, "pools.overlays");
  const of = { connection, pool, machine };
  const removals = [removeGuestFiles(of), removeVolumes(pool, machine, { mayHaveNamed })] as const;
  await Promise.allSettled(removals); // as above
  const [hadFiles, volumes] = await Promise.all(removals);
  return hadFiles || volumes.length > 0;
}

/** Whether there was a volume that said whose the machine was. */
async function releaseNameIn(
  machine: string,
  connection: Connection,
  poolName: string,
): Promise<boolean> {
  using pool = await StoragePool.find(connection, poolName);
  return pool !== null && await releaseName(pool, machine);
}
