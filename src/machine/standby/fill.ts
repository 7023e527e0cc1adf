// SPDX-License-Identifier: GPL-2.0-or-later
import { severalFailures } from "../../errors.ts";
import { makeKeyPair } from "../../guest/key.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { type Owner, ownProcess } from "../owner.ts";
import { findActivePool } from "../storage/pools.ts";
import {
  acquireStandby,
  isAlive,
  markWaiting,
  newStandbyName,
  type Standby,
  waitingIn,
} from "./waiting.ts";
import { createVolumes, reserveName } from "../start.ts";
import type { QueueEntry } from "../queue/queue_entry.ts";
import { releaseName } from "../storage/volumes.ts";
import { templatesToWait } from "../../policy/template_choice.ts";
import { enterIfRoom } from "../queue/admission.ts";
import { reserveAbandonedName } from "../name.ts";
import { cleanup, type CleanupStage, removeMachineSafely } from "../remove.ts";
import { isolate, requireNetwork } from "../network/isolation.ts";
import { createLogin, type MachineLogin, volumeContents } from "../login.ts";
import { newMetadata } from "../create.ts";
import { lookupOverlayPool } from "../storage/overlay_pool.ts";
import { resumeFrom } from "../warm/resume.ts";
import type { Stage } from "../context.ts";
import {
  countWaiting,
  findWanted,
  type FoundWanted,
  unwantedOf,
  type WantedStandbys,
} from "./wanted.ts";
import { StepTimer } from "../steps.ts";

/** The name that whoever makes machines wait has meanwhile, so that one process at a time does. */
const FILLER = "standby-filler";

/** How long one of them may take, and all together. */
const MAKING_SECONDS = 1800;
const FILLING_SECONDS = 6 * 3600;

/**
 * Has as many machines wait for jobs as the settings want, while there is room, and removes those
 * that no job could get. If another process does that already, it is left to that one. Throws
 * SystemFailure for what it could not make.
 */
export async function fillStandbys(stage: Stage): Promise<void> {
  const { connection, config, log } = stage;
  if (templatesToWait(config).length === 0) {
    await removeStandbys(stage);
    return log('No template that the settings name has "standby", so no machine waits for a job');
  }
  using pool = await lookupOverlayPool(connection, config.overlayPool);
  const full = new Set<string>(); // templates of which no more can be made now
  for (;;) {
    const owner = await ownProcess(FILLING_SECONDS);
    if (!await reserveAbandonedName(pool, { name: FILLER, owner }, stage)) {
      return log("Another process has machines wait for jobs: it is left to that one");
    }
    let found: FoundWanted;
    try {
      found = await findWanted(stage);
      await removeDead(pool, stage);
      await removeUnwanted(found, pool, stage);
      for (const each of found.wanted) {
        while (!full.has(each.template) && await isLacking(each, pool)) {
          const made = await makeOne(each, pool, stage).catch((error) => {
            stage.signal.throwIfAborted();
            found.problems.push(error);
            return false;
          });
          if (!made) full.add(each.template);
        }
      }
    } finally {
      await releaseName(pool, FILLER);
    }
    if (found.problems.length > 0) {
      const what = "Cannot have all machines wait that the settings want";
      throw severalFailures({ what }, found.problems);
    }
    // Whoever took one and came while we had the name left it to us to make another.
    const open = found.wanted.filter(({ template }) => !full.has(template));
    const lacks = await Promise.all(open.map((each) => isLacking(each, pool)));
    if (!lacks.includes(true)) return;
  }
}

async function isLacking(wanted: WantedStandbys, pool: StoragePool): Promise<boolean> {
  return countWaiting(wanted, await pool.volumeNames()) < wanted.count;
}

/** Has no machine wait any more. Those that jobs have stay. */
export async function removeStandbys(stage: Stage): Promise<void> {
  const { connection, config } = stage;
  using pool = await findActivePool(connection, config.overlayPool);
  if (pool !== null) await removeUnwanted({ wanted: [], problems: [] }, pool, stage);
}

/** Removes those whose guests have ended, such as with the host. */
async function removeDead(pool: StoragePool, stage: CleanupStage): Promise<void> {
  for (const standby of waitingIn(await pool.volumeNames())) {
    if (await isAlive(standby, stage.connection)) continue;
    if (await removeStandby(standby, pool, stage)) {
      stage.log(`Removed what was left of "${standby.name}", which waited for a job`);
    }
  }
}

/** Removes what waits and is not wanted, or too many. */
async function removeUnwanted(
  found: FoundWanted,
  pool: StoragePool,
  stage: CleanupStage,
): Promise<void> {
  for (const standby of unwantedOf(found, await pool.volumeNames())) {
    if (await removeStandby(standby, pool, stage)) {
      stage.log(`Removed the machine "${standby.name}", which waited for a job`);
    }
  }
}

/** Removes a machine if it still waits. Resolves to whether it did. */
export async function removeStandby(
  standby: Standby,
  pool: StoragePool,
  stage: CleanupStage,
): Promise<boolean> {
  if (!await acquireStandby(pool, standby)) return false;
  await cleanup(standby.name, { ...stage, log: () => {} });
  return true;
}

/** Has one more wait. Resolves to false if there is no room for it now. Throws SystemFailure. */
async function makeOne(wanted: WantedStandbys, pool: StoragePool, stage: Stage): Promise<boolean> {
  const name = newStandbyName();
  const owner = await ownProcess(MAKING_SECONDS);
  if (!await reserveName(pool, name, owner)) throw new Error(`"${name}" is there already`);
  await using undo = new AsyncDisposableStack();
  undo.defer(() => removeMachineSafely(name, { ...stage, log: () => {} }));
  const { memoryMib } = wanted.settings;
  const admission = await enterIfRoom(name, { pool, memoryMib }, stage);
  if (admission === null) {
    stage.log(`There is no room now for another machine of "${wanted.template}" that waits`);
    return false;
  }
  const timer = new StepTimer(null);
  await make({ name, owner, turn: admission.turn }, wanted, { pool, timer }, stage);
  stage.signal.throwIfAborted();
  await markWaiting(pool, { name, kind: wanted.kind });
  undo.move();
  stage.log(
    `The machine "${name}" of "${wanted.template}" waits for a job after ${timer.summary()}`,
  );
  return true;
}

async function make(
  { name, owner, turn }: {
    readonly name: string;
    readonly owner: Owner;
    readonly turn: QueueEntry | null;
  },
  { template, image, disk, settings }: WantedStandbys,
  { pool, timer }: { readonly pool: StoragePool; readonly timer: StepTimer },
  stage: Stage,
): Promise<void> {
  const { connection } = stage;
  const subnets = await requireNetwork(connection, settings);
  const login = await ownLogin(name, settings, stage);
  const volumes = await createVolumes(pool, name, volumeContents(name, login, settings));
  const { filter, card } = await isolate(name, { settings, subnets }, connection);
  const record = newMetadata(owner, { template, login, settings, card });
  const source = { template: disk, diskGib: settings.diskGib };
  const machine = {
    ...{ name, record, settings, filter, card, disk: source, login },
    ...volumes,
  };
  await resumeFrom(image, machine, { pool, turn, timer }, { ...stage, log: () => {} });
}

/** A key that nobody has later: whoever takes the machine over brings another. */
async function ownLogin(
  name: string,
  settings: WantedStandbys["settings"],
  stage: Stage,
): Promise<MachineLogin> {
  if (settings.login === "template") {
    return await createLogin(name, { keyFile: undefined, settings }, stage);
  }
  return { key: { ...await makeKeyPair(), file: "" }, hostKey: await makeKeyPair() };
}
