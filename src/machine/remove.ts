// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { isKeyFileOf, keyFile, removeKeyFile } from "../guest/key_file.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Domain } from "../libvirt/domain.ts";
import { isLibvirtError, VIR_ERR } from "../libvirt/error.ts";
import { FilterBinding } from "../libvirt/network_filter.ts";
import { StoragePool } from "../libvirt/storage_pool.ts";
import { type Context, type Host, quiet, withReconnect } from "./context.ts";
import { endMasterOf } from "./end_master.ts";
import type { FoundMachine } from "./inventory.ts";
import { standbysAssignedTo } from "./lookup.ts";
import { readMetadata } from "./metadata.ts";
import { cardDevices, removeFilter } from "./network/filter.ts";
import { acquireStandby, isStandbyName, type Standby } from "./standby/waiting.ts";
import { removeGuestFiles } from "./storage/guest_files.ts";
import { lookupActivePool } from "./storage/pools.ts";
import { releaseName, removeVolumes } from "./storage/volumes.ts";
import { hasProjectLimit } from "../policy/decide.ts";
import { virsh } from "../shell.ts";
import { allOf } from "../wait.ts";

/**
 * Removes a machine and everything that belongs to it: domain, standby machine, keys, filter and volumes,
 * last the owner's. `volumes` are in other pools than overlays'. Resolves to whether anything existed.
 * Throws SystemFailure if the domain is not ours.
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
  const { destroyed, key, isReady } = await destroyMachine(machine, host);
  const standbys = destroyed ? [] : await standbysAssignedTo(machine, host);
  for (const standby of standbys) await removeMachine(standby, quiet(context), { attemptDir });
  const removals = [
    removeKeyFile(keyFile(directories.keys, machine)),
    removeKeyFile(keyFile(directories.lastingKeys, machine)),
    // If a job's machine is removed by hand, only the domain knows the attempt's directory.
    isKeyFileOf(machine, key) && removeKeyFile(key),
    endMasterOf(machine, { attemptDir, key }).then(() => false),
    attemptDir !== "" && removeKeyFile(keyFile(attemptDir, machine)),
    removeFilter(connection, machine),
    ...pools.map((pool) => {
      const mayHaveNamed = !isReady || isStandbyName(machine) || hasProjectLimit(config);
      return deleteDisks(machine, mayHaveNamed, connection, pool);
    }),
  ];
  const removed = await allOf(removals); // a failure does not stop the others
  let found = destroyed || standbys.length > 0 || removed.includes(true);
  for (const pool of pools) found = await releaseNameIn(machine, connection, pool) || found;
  report.log(found ? `Removed the machine "${machine}"` : `There is no machine "${machine}"`);
  return found;
}

/** Removes a standby machine if no job has taken it. Resolves to whether it did. */
export async function removeStandby(
  standby: Standby,
  pool: StoragePool,
  context: Context,
): Promise<boolean> {
  if (!await acquireStandby(pool, standby)) return false;
  await removeMachine(standby.name, quiet(context));
  return true;
}

/** As {@linkcode removeMachine}, but tries again on a new connection. */
export async function removeMachineSafely(machine: string, context: Context): Promise<void> {
  await withReconnect(context, (context) => removeMachine(machine, context));
}

/** Destroys the domain. Gives the file of its key, and whether prepare had finished it. */
async function destroyMachine(
  machine: string,
  host: Host,
): Promise<{ readonly destroyed: boolean; readonly key: string; readonly isReady: boolean }> {
  const { connection } = host;
  using domain = await Domain.find(connection, machine);
  if (domain === null) return { destroyed: false, key: "", isReady: false };
  try {
    const metadata = await readMetadata(domain);
    if (metadata !== null) {
      await destroyDomain(domain, host);
      return { destroyed: true, key: metadata.key, isReady: metadata.address !== "" };
    }
  } catch (error) {
    if (!isLibvirtError(error, VIR_ERR.NO_DOMAIN)) throw error;
    return { destroyed: true, key: "", isReady: false }; // it has just ended by itself
  }
  throw new SystemFailure({
    what: `The domain "${machine}" was not created by libvirt-gci, so it is not removed`,
    advice: `List the domains of this host: ${virsh(connection, "list", "--all", "--title")}`,
  });
}

/** How long QEMU may take to have its guest stand still. If it hangs, it never does. */
const STILL_SECONDS = 5;

/**
 * Destroys the domain. libvirt removes a filter's rules after QEMU has ended, by some fifty processes one
 * after another, which take longer than all else. So they are removed meanwhile, as soon as the guest
 * stands still and can send nothing. Where that fails, libvirt does it as usual.
 */
async function destroyDomain(domain: Domain, { connect }: Host): Promise<void> {
  const { promise: isStill, resolve: stands } = Promise.withResolvers<void>();
  // It may have ended, or hang, or its daemon may know no bindings.
  const removed = removeRules(domain.name, connect, stands).catch(() => {});
  await Promise.race([isStill, removed]);
  const destroyed = domain.destroy();
  await Promise.allSettled([destroyed, removed]);
  await destroyed;
}

/**
 * Suspends the domain and removes its filters' rules. It uses a connection of its own: calls of one take
 * turns, and a call to a QEMU that hangs may not hold up the domain's end.
 */
async function removeRules(
  name: string,
  connect: Host["connect"],
  onStill: () => void,
): Promise<void> {
  await using connection = await connect(STILL_SECONDS);
  using domain = await Domain.lookup(connection, name);
  using bindings = new DisposableStack();
  const devices = cardDevices(await domain.xml());
  const found = await Promise.all(devices.map((it) => FilterBinding.find(connection, it)));
  const bound = found.filter((binding) => binding !== null);
  bound.forEach((binding) => bindings.use(binding));
  if (bound.length === 0) return;
  await domain.suspend();
  onStill();
  await Promise.allSettled(bound.map((binding) => binding.delete()));
}

/** Whether there was a volume to delete. */
async function deleteDisks(
  machine: string,
  mayHaveNamed: boolean,
  connection: Connection,
  poolName: string,
): Promise<boolean> {
  using found = await StoragePool.find(connection, poolName);
  if (found === null) return false;
  using pool = await lookupActivePool(connection, poolName, "pools.overlays");
  const files = removeGuestFiles({ connection, pool, machine });
  const volumes = removeVolumes(pool, machine, { mayHaveNamed });
  const [wereFiles, deleted] = await allOf([files, volumes]); // both end before the handles go
  return wereFiles || deleted.length > 0;
}

/** Whether there was an owner's volume. */
async function releaseNameIn(
  machine: string,
  connection: Connection,
  poolName: string,
): Promise<boolean> {
  using pool = await StoragePool.find(connection, poolName);
  return pool !== null && await releaseName(pool, machine);
}
