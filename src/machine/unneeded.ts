// SPDX-License-Identifier: GPL-2.0-or-later
import { isKernelFile } from "../../ffi/proc.ts";
import { durationText, moment, secondsSince } from "../duration.ts";
import { mayExist } from "../files.ts";
import { withoutAttempt } from "../job/job.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Domain } from "../libvirt/domain.ts";
import { isLibvirtError } from "../libvirt/error.ts";
import { StoragePool } from "../libvirt/storage_pool.ts";
import { type Context, type Host, quiet, withoutWarnings } from "./context.ts";
import { type FoundMachine, machinesIn } from "./inventory.ts";
import { findMetadata, type MachineMetadata, type Owner } from "./metadata.ts";
import { findOwner, isFresh, type OwnerFound } from "./owner.ts";
import { hostMark, isRunning } from "./process.ts";
import { removeMachine } from "./remove.ts";
import { assignmentsIn, isStandbyName, waitingIn } from "./standby/waiting.ts";
import { findActivePool } from "./storage/pools.ts";

/**
 * Why the machine is no longer needed, as the end of a sentence; null while it may be needed. A job
 * needs its machine until the deadline, until its runner is certainly gone, or until the attempt's
 * directory is. On another host, only the deadline is known. A person's machine is needed until the
 * person removes it, and a kept machine until that time is over.
 */
export async function whyUnneeded(
  machine: Owner & Partial<MachineMetadata>,
): Promise<string | null> {
  const { deadline, attemptDir, runner, isRunner, host, keptUntil, promisedUntil } = machine;
  const now = Date.now();
  if (Math.max(keptUntil ?? 0, promisedUntil ?? 0) > now) return null;
  if (deadline !== null && deadline < now) {
    return deadline === keptUntil
      ? `it was kept until ${moment(deadline)}`
      : `its deadline passed ${durationText(secondsSince(deadline))} ago`;
  }
  const isByHand = attemptDir === "" && runner === "";
  if (isByHand || host === "" || host !== await hostMark()) return null;
  const runs = isRunning(runner);
  if (attemptDir !== "" && await mayExist(attemptDir)) {
    return runs || !isRunner ? null : "its runner has ended";
  }
  if (runs) return isGoneFor(runner, attemptDir) ? "its attempt has ended" : null;
  return attemptDir === ""
    ? "the process that was creating it has ended"
    : "its runner has ended, and the attempt's directory is gone";
}

/**
 * Whether the directory certainly does not exist for this process, which may have another /tmp
 * (PrivateTmp, systemd.exec(5)). Then the attempt is over.
 */
function isGoneFor(mark: string, directory: string): boolean {
  if (!directory.startsWith("/")) return false;
  const seen = `/proc/${Number.parseInt(mark)}/root${directory}`;
  return isKernelFile(seen.slice(0, seen.lastIndexOf("/"))) && !isKernelFile(seen);
}

/** Who needs a machine. */
export interface Need {
  /** Null if it has no domain of ours. */
  readonly metadata: MachineMetadata | null;
  /** Null if unknown. */
  readonly owner: Owner | null;
  /** See {@linkcode whyUnneeded}. */
  readonly why: string | null;
}

/** Finds out who needs the machine at this moment. */
export async function lookupNeed(
  { name, volumes }: Pick<FoundMachine, "name" | "volumes">,
  host: Host,
): Promise<Need> {
  const { connection } = host;
  using domain = await Domain.find(connection, name);
  const metadata = domain && await findMetadata(domain);
  if (metadata !== null) {
    const why = await whyUnneeded(metadata);
    // The order matters: a process marks the machine before it ends.
    const mayBeAwaited = why !== null && isStandbyName(name) && metadata.machine === "";
    const isNeeded = mayBeAwaited && await isAwaited(name, host);
    return { metadata, owner: metadata, why: isNeeded ? null : why };
  }
  const assigned = await metadataOfAssigned(name, volumes, connection);
  if (assigned !== null) return { metadata, owner: assigned, why: await whyUnneeded(assigned) };
  const found = await findOwnerOf(name, host);
  if (found === "unknown") return { metadata, owner: null, why: null };
  if (found === null) {
    const why = await isAnyFresh(volumes, connection) ? null : "it has no owner";
    return { metadata, owner: null, why };
  }
  if ("why" in found) return { metadata, owner: null, why: found.why };
  return { metadata, owner: found, why: await whyUnneeded(found) };
}

/** Finds out who needs each of these machines. */
export async function lookupNeeds<M extends Pick<FoundMachine, "name" | "volumes">>(
  machines: readonly M[],
  host: Host,
): Promise<(M & Need)[]> {
  return await Promise.all(
    machines.map(async (machine) => ({ ...machine, ...await lookupNeed(machine, host) })),
  );
}

/**
 * The machines without those that took over a standby machine: of these, only the name is their own, and
 * the standby machine's metadata has it.
 */
export function withoutTakers<M extends Need & Pick<FoundMachine, "name">>(
  machines: readonly M[],
): M[] {
  const takers = new Set(machines.map(({ metadata }) => metadata?.machine));
  return machines.filter(({ name }) => !takers.has(name));
}

/** Whether a standby machine waits, or is being taken over by a machine that is needed. */
async function isAwaited(standby: string, { connection, config }: Host): Promise<boolean> {
  using pool = await findActivePool(connection, config.pools.overlays);
  const volumes = await pool?.volumeNames() ?? [];
  if (waitingIn(volumes).some(({ name }) => name === standby)) return true;
  for (const { machine, standby: assigned } of assignmentsIn(volumes)) {
    if (assigned !== standby) continue;
    const owner = pool && await findOwner(pool, machine);
    if (owner === "unknown") return true;
    if (owner !== null && !("why" in owner) && await whyUnneeded(owner) === null) return true;
  }
  return false;
}

/** The metadata of the standby machine that this machine took over; null if there is none. */
async function metadataOfAssigned(
  machine: string,
  volumes: FoundMachine["volumes"],
  connection: Connection,
): Promise<MachineMetadata | null> {
  for (const { standby } of assignmentsIn(volumes.map(({ name }) => name))) {
    using domain = await Domain.find(connection, standby);
    const metadata = domain && await findMetadata(domain);
    if (metadata?.machine === machine) return metadata;
  }
  return null;
}

async function findOwnerOf(
  machine: string,
  { connection, config: { pools } }: Host,
): Promise<OwnerFound | null> {
  for (const name of [pools.overlays, pools.templates]) {
    using pool = await findActivePool(connection, name);
    const found = pool && await findOwner(pool, machine);
    if (found !== null) return found;
  }
  return null;
}

async function isAnyFresh(
  volumes: FoundMachine["volumes"],
  connection: Connection,
): Promise<boolean> {
  for (const { pool: poolName, name } of volumes) {
    using pool = await StoragePool.find(connection, poolName);
    using volume = pool && await pool.findVolume(name);
    if (volume !== null && await isFresh(volume)) return true;
  }
  return false;
}

/** Removes a found machine. Resolves to whether anything was left: another gc may have been faster. */
export function removeFound(
  { name, volumes }: Pick<FoundMachine, "name" | "volumes">,
  { owner }: Need,
  context: Context,
): Promise<boolean> {
  return removeMachine(name, quiet(context), { volumes, attemptDir: owner?.attemptDir ?? "" });
}

const SWEEP_MACHINES = 10;
const SWEEP_MS = 2000;

/**
 * A short gc at the start of prepare. It looks at what other attempts at this job left, and at a few
 * random machines of the overlay pool, for two seconds. It never fails, and names no machine, since the
 * log belongs to another job.
 */
export async function sweep(machine: string, context: Context): Promise<void> {
  await removeUnneeded(await chooseSome(machine, context), context, { milliseconds: SWEEP_MS });
}

/**
 * Removes the first of these machines that is no longer needed, to make room for another. gc reports
 * those that cannot be removed. Resolves to whether it removed one.
 */
export async function removeOneUnneeded(
  found: readonly Pick<FoundMachine, "name" | "volumes">[],
  context: Context,
): Promise<boolean> {
  return await removeUnneeded(found, withoutWarnings(context), { most: 1 }) > 0;
}

/** Resolves to how many of these machines it removed within the limits. */
async function removeUnneeded(
  found: readonly Pick<FoundMachine, "name" | "volumes">[],
  context: Context,
  { milliseconds = Infinity, most = Infinity }: {
    readonly milliseconds?: number;
    readonly most?: number;
  },
): Promise<number> {
  const end = performance.now() + milliseconds;
  let removed = 0;
  let failed = 0;
  for (const machine of found) {
    if (removed >= most || performance.now() > end || context.signal.aborted) break;
    try {
      const need = await lookupNeed(machine, context.host);
      if (need.why === null) continue;
      if (await removeFound(machine, need, context)) removed++;
    } catch {
      failed++;
    }
  }
  if (removed > 0) context.report.log(`Removed ${machines(removed)} no longer needed`);
  if (failed > 0) {
    context.report.warn(
      `Could not remove ${machines(failed)} no longer needed: ` +
        "ask the administrator to run libvirt-gci gc, which shows why",
    );
  }
  return removed;
}

function machines(count: number): string {
  return count === 1 ? "a machine" : `${count} machines`;
}

/** Some machines of the overlay pool, those of the same job first; none if libvirt does not answer. */
async function chooseSome(
  machine: string,
  { host: { connection, config } }: Context,
): Promise<Pick<FoundMachine, "name" | "volumes">[]> {
  try {
    using pool = await findActivePool(connection, config.pools.overlays);
    const job = withoutAttempt(machine);
    const place = ({ name }: { readonly name: string }): number =>
      withoutAttempt(name) === job ? 0 : Math.random();
    return machinesIn(config.pools.overlays, await pool?.volumeNames() ?? [])
      .map((other): [number, typeof other] => [place(other), other])
      .sort(([a], [b]) => a - b).slice(0, SWEEP_MACHINES).map(([, other]) => other);
  } catch (error) {
    if (isLibvirtError(error)) return []; // prepare reports it better
    throw error;
  }
}
