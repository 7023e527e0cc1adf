// SPDX-License-Identifier: GPL-2.0-or-later
import { StoragePool } from "../libvirt/storage_pool.ts";
import { severalFailures, type SystemFailure } from "../errors.ts";
import { withoutAttempt } from "../job/job.ts";
import { isLibvirtError } from "../libvirt/error.ts";
import { age, ageSeconds } from "./owner.ts";
import { findActivePool } from "./storage/pools.ts";
import { takenIn, waitingIn } from "./standby/waiting.ts";
import { endTurn, isLive, longestTurnSeconds, turnsOf } from "./queue/queue_entry.ts";
import { sleep } from "../wait.ts";
import { cleanup } from "./remove.ts";
import {
  findMachines,
  type FoundMachine,
  isTrace,
  lookupNeed,
  machinesIn,
  type Need,
  partsOf,
} from "./inventory.ts";
import type { Stage } from "./context.ts";
import { takenOverBy } from "./lookup.ts";

/** What gc needs of a stage. */
export type GcStage = Pick<
  Stage,
  "connection" | "config" | "keyDirectory" | "lastingKeyDirectory" | "signal" | "log" | "warn"
>;

/** What the command line says to gc. */
export interface GcOptions {
  /** Only say what would be removed. */
  readonly dryRun?: boolean;
  /** Remove also what somebody may need, if it was made so long ago; null is nothing of that. */
  readonly olderThanSeconds?: number | null;
}

/**
 * Removes every machine that no job and no person needs any more, whatever is left of it, with a
 * line for each. Safe beside other gcs and stages. Throws SystemFailure, in the end, with all that
 * it could not remove.
 */
export async function gc(
  { dryRun = false, olderThanSeconds = null }: GcOptions,
  stage: GcStage,
): Promise<void> {
  const problems: unknown[] = [];
  // With one that took over others, these go too: so it comes before them.
  const found = (await findStill(stage))
    .sort((a, b) => standbysOf(b).length - standbysOf(a).length);
  const gone = new Set<FoundMachine>();
  for (const machine of found) {
    stage.signal.throwIfAborted();
    if (gone.has(machine)) continue;
    try {
      const need = await lookupNeed(machine, stage); // somebody may have come or gone by now
      const why = need.why ?? whyTooOld(need, olderThanSeconds);
      if (why === null) {
        if (!dryRun) await endDeadTurns(machine, stage);
        continue;
      }
      const all = await withTakenOver(machine, found, stage);
      const what = `"${machine.name}" (${partsOf(all)}): ${why}`;
      if (dryRun) stage.log(`Would remove ${what}`);
      else if (await remove(machine, need, stage)) stage.log(`Removed ${what}`);
      for (const each of all) gone.add(each);
    } catch (error) {
      problems.push(error);
    }
  }
  for (const removeMore of [removeDeadWarmImages, removeUnwantedStandbys]) {
    await removeMore(dryRun, problems, stage).catch((error) => {
      stage.signal.throwIfAborted();
      problems.push(error);
    });
  }
  if (problems.length > 0) throw unremoved(problems);
}

/** What the machine took over, or tried to. */
function standbysOf({ volumes }: FoundMachine): string[] {
  return takenIn(volumes.map(({ name }) => name)).map(({ standby }) => standby);
}

/** The machine and those that go with it: one with a domain of its own has given up what it took over. */
async function withTakenOver(
  machine: FoundMachine,
  found: readonly FoundMachine[],
  stage: GcStage,
): Promise<FoundMachine[]> {
  if (machine.hasDomain || standbysOf(machine).length === 0) return [machine];
  const names = await takenOverBy(machine.name, stage);
  return [machine, ...found.filter(({ name }) => names.includes(name))];
}

/** Of a machine that is needed, somebody may have killed prepare. */
async function endDeadTurns(
  { name, volumes }: FoundMachine,
  { connection, config, log }: GcStage,
): Promise<void> {
  const names = volumes.filter(({ pool }) => pool === config.overlayPool).map(({ name }) => name);
  for (const turn of turnsOf(names)) {
    if (await isLive(turn, { longestSeconds: longestTurnSeconds(config) })) continue;
    using pool = await StoragePool.lookup(connection, config.overlayPool);
    await endTurn(pool, turn);
    log(`Removed the turn of "${name}": nobody waits for it any more`);
  }
}

async function removeDeadWarmImages(
  dryRun: boolean,
  problems: unknown[],
  { connection, config, log }: GcStage,
): Promise<void> {
  const { deleteWarmImage, findDeadWarmImages } = await import("./warm/warm_image.ts");
  using pool = await findActivePool(connection, config.overlayPool);
  for (const image of pool === null ? [] : await findDeadWarmImages(pool)) {
    try {
      const what = `a warm image of "${image.template}": it is incomplete, or there is a newer one`;
      if (dryRun) {
        log(`Would remove ${what}`);
      } else if (pool !== null) {
        await deleteWarmImage(pool, image);
        log(`Removed ${what}`);
      }
    } catch (error) {
      problems.push(error);
    }
  }
}

/** Removes the machines that wait for jobs which no job could get. */
async function removeUnwantedStandbys(
  dryRun: boolean,
  problems: unknown[],
  stage: GcStage,
): Promise<void> {
  using pool = await findActivePool(stage.connection, stage.config.overlayPool);
  const volumes = await pool?.volumeNames() ?? [];
  if (pool === null || waitingIn(volumes).length === 0) return;
  const { findWanted, unwantedOf } = await import("./standby/wanted.ts");
  const { removeWaiting } = await import("./standby/fill.ts");
  for (const standby of unwantedOf(await findWanted(stage), volumes)) {
    try {
      const what = `"${standby.name}": it waited for a job, and no job could get it any more`;
      if (dryRun) stage.log(`Would remove ${what}`);
      else if (await removeWaiting(standby, pool, stage)) stage.log(`Removed ${what}`);
    } catch (error) {
      problems.push(error);
    }
  }
}

const TRACE_MS = 5000;

/**
 * The machines that are there. Of one with only a filter or a key, a prepare with other settings
 * may be about to start the domain: it counts if it is still so a little later.
 */
async function findStill(stage: GcStage): Promise<FoundMachine[]> {
  const machines = await findMachines(stage, { refresh: true });
  if (!machines.some(isTrace)) return machines;
  await sleep(TRACE_MS, stage.signal);
  const traces = (await findMachines(stage, { refresh: false })).filter(isTrace);
  const stay = new Set(traces.map(({ name }) => name));
  return machines.filter((machine) => !isTrace(machine) || stay.has(machine.name));
}

function whyTooOld({ owner }: Need, olderThanSeconds: number | null): string | null {
  if (owner === null || olderThanSeconds === null) return null;
  const seconds = ageSeconds(owner);
  return seconds > olderThanSeconds ? `it was made ${age(seconds)} ago` : null;
}

/** Whether there was anything left to remove: another gc may have been faster. */
async function remove(
  machine: Pick<FoundMachine, "name" | "volumes">,
  { owner }: Need,
  stage: GcStage,
): Promise<boolean> {
  return await cleanup(machine.name, { ...stage, log: () => {} }, {
    volumes: machine.volumes,
    attemptDir: owner?.attemptDir ?? "",
  });
}

function unremoved(problems: readonly unknown[]): SystemFailure {
  const machines = problems.length === 1 ? "a machine" : `${problems.length} machines`;
  return severalFailures({
    what: `Cannot remove ${machines} that nobody needs`,
    advice: "Mend what is said below and run it again, or leave it to the next time",
  }, problems);
}

const SWEEP_MACHINES = 10;
const SWEEP_MS = 2000;

/**
 * As {@linkcode gc}, for the start of prepare: it asks about what other attempts at the job of this
 * machine left, whose cleanup may not have reached libvirt, and about a few further machines of the
 * overlay pool, by chance. It begins no further one after two seconds, and never fails. What it does not
 * come to, a later prepare does. It names no machine, since the log may be another job's.
 */
export async function sweep(machine: string, stage: GcStage): Promise<void> {
  await removeUnneeded(await chooseSome(machine, stage), stage, { milliseconds: SWEEP_MS });
}

/**
 * Removes the first of these machines that nobody needs any more, for somebody who waits for one: its
 * runner may have been killed, and gc come only much later. What cannot be removed is for gc to say.
 * Resolves to whether there was one.
 */
export async function removeOneUnneeded(
  found: readonly Pick<FoundMachine, "name" | "volumes">[],
  stage: Omit<GcStage, "warn">,
): Promise<boolean> {
  return await removeUnneeded(found, { ...stage, warn: () => {} }, { most: 1 }) > 0;
}

/**
 * As {@linkcode sweep}, of these machines: for so long, and no more than so many. Resolves to how many
 * it removed.
 */
async function removeUnneeded(
  found: readonly Pick<FoundMachine, "name" | "volumes">[],
  stage: GcStage,
  { milliseconds = Infinity, most = Infinity }: {
    readonly milliseconds?: number;
    readonly most?: number;
  } = {},
): Promise<number> {
  const end = performance.now() + milliseconds;
  let removed = 0;
  let failed = 0;
  for (const machine of found) {
    if (removed >= most || performance.now() > end || stage.signal.aborted) break;
    try {
      const need = await lookupNeed(machine, stage);
      if (need.why === null) continue;
      if (await remove(machine, need, stage)) removed++;
    } catch {
      failed++;
    }
  }
  if (removed > 0) stage.log(`Removed ${machines(removed)} that nobody needs any more`);
  if (failed > 0) {
    stage.warn(
      `Could not remove ${machines(failed)} that nobody needs any more: ` +
        "the host's administrator can see why with libvirt-gci gc",
    );
  }
  return removed;
}

function machines(count: number): string {
  return count === 1 ? "a machine" : `${count} machines`;
}

/**
 * Some of the machines that have volumes in the overlay pool, those of the same job first; none where
 * libvirt does not say.
 */
async function chooseSome(
  machine: string,
  { connection, config }: GcStage,
): Promise<Pick<FoundMachine, "name" | "volumes">[]> {
  try {
    using pool = await findActivePool(connection, config.overlayPool);
    const job = withoutAttempt(machine);
    const found = machinesIn(config.overlayPool, await pool?.volumeNames() ?? []).map((other) => ({
      other,
      place: withoutAttempt(other.name) === job ? 0 : Math.random(),
    }));
    return found.sort((a, b) => a.place - b.place).slice(0, SWEEP_MACHINES)
      .map(({ other }) => other);
  } catch (error) {
    if (isLibvirtError(error)) return []; // prepare is about to say it better
    throw error;
  }
}
