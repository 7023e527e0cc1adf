// SPDX-License-Identifier: GPL-2.0-or-later
import { Domain } from "../../libvirt/domain.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { type Context, type Host, quiet, withOwnSteps } from "../context.ts";
import { create } from "../create.ts";
import type { MachineSpec } from "../machine.ts";
import { reserveAbandonedName } from "../name.ts";
import { ownProcess } from "../owner.ts";
import { waitForBoot } from "../reach.ts";
import { removeMachineSafely, removeStandby } from "../remove.ts";
import { isAlive, markWaiting, newStandbyName, waitingIn } from "./waiting.ts";
import {
  countWaiting,
  findWanted,
  type FoundWanted,
  unwantedOf,
  type WantedStandbys,
} from "./wanted.ts";
import { boot } from "../start.ts";
import { findActivePool, lookupOverlayPool } from "../storage/pools.ts";
import { releaseName } from "../storage/volumes.ts";
import { resumeFrom } from "../warm/resume.ts";
import { templateAdvice, templatesToWait } from "../../policy/template_choice.ts";
import { Problems } from "../../problems.ts";

/** A reserved name, so that one process at a time creates standby machines. */
const FILLER = "standby-filler";

/** The most time for one machine, and for all. */
const MAKING_SECONDS = 1800;
const FILLING_SECONDS = 6 * 3600;

/**
 * Creates as many standby machines as the settings want, while there is room, and removes those that no
 * job can get. If another process does so already, it does nothing. Throws SystemFailure.
 */
export async function fillStandbys(context: Context): Promise<void> {
  const { host, report: { log } } = context;
  if (templatesToWait(host.config).length === 0) {
    await removeStandbys(context);
    return log(
      'No standby machines are created, because no template in the settings sets "standby"',
    );
  }
  using pool = await lookupOverlayPool(host);
  const full = new Set<string>(); // templates without room for more
  for (;;) {
    const owner = await ownProcess(FILLING_SECONDS);
    if (!await reserveAbandonedName(pool, { name: FILLER, owner }, context)) {
      return log("Another process is already creating standby machines");
    }
    let found: FoundWanted;
    const problems = new Problems();
    try {
      found = await findWanted(host);
      problems.errors.push(...found.problems);
      await removeDead(pool, context);
      await removeUnwanted(found, pool, context);
      for (const each of found.wanted) {
        while (!full.has(each.choice.name) && await isLacking(each, pool)) {
          let made = false;
          await problems.collect(async () => {
            made = await makeOne(each, pool, context);
          }, context.signal);
          if (!made) full.add(each.choice.name);
        }
      }
    } finally {
      await releaseName(pool, FILLER);
    }
    problems.throwAll({ what: "Cannot create all standby machines" });
    // A job may have taken one meanwhile, whose refill left it to this process.
    const open = found.wanted.filter(({ choice }) => !full.has(choice.name));
    const lacks = await Promise.all(open.map((each) => isLacking(each, pool)));
    if (!lacks.includes(true)) return;
  }
}

async function isLacking(wanted: WantedStandbys, pool: StoragePool): Promise<boolean> {
  return countWaiting(wanted, await pool.volumeNames()) < wanted.count;
}

/** Removes all standby machines that wait. */
export async function removeStandbys(context: Context): Promise<void> {
  const { connection, config } = context.host;
  using pool = await findActivePool(connection, config.pools.overlays);
  if (pool !== null) await removeUnwanted({ wanted: [], problems: [] }, pool, context);
}

/** Removes standby machines whose guests have ended. */
async function removeDead(pool: StoragePool, context: Context): Promise<void> {
  for (const standby of waitingIn(await pool.volumeNames())) {
    if (await isAlive(standby, context.host.connection)) continue;
    if (await removeStandby(standby, pool, context)) {
      context.report.log(`Removed the ended standby machine "${standby.name}"`);
    }
  }
}

async function removeUnwanted(
  found: FoundWanted,
  pool: StoragePool,
  context: Context,
): Promise<void> {
  for (const standby of unwantedOf(found, await pool.volumeNames())) {
    if (await removeStandby(standby, pool, context)) {
      context.report.log(`Removed the standby machine "${standby.name}"`);
    }
  }
}

/** Creates one more. Resolves to false if there is no room now. Throws SystemFailure. */
async function makeOne(
  wanted: WantedStandbys,
  pool: StoragePool,
  context: Context,
): Promise<boolean> {
  const { host, report: { log } } = context;
  const template = wanted.choice.name;
  const timed = withOwnSteps(quiet(context));
  const machine = await create(await standbySpec(wanted, host), timed);
  if (machine === null) {
    log(`No room for another standby machine of "${template}"`);
    return false;
  }
  const { name } = machine;
  await using undo = new AsyncDisposableStack();
  undo.defer(() => removeMachineSafely(name, timed));
  if (wanted.image === null) {
    using domain = await Domain.lookup(host.connection, name);
    await waitForBoot(domain, wanted.choice.settings, timed); // the agent must let the job's user in
  }
  await markWaiting(pool, { name, kind: wanted.kind });
  undo.move();
  log(
    `The standby machine "${name}" of "${template}" is ready in ${timed.report.steps.summary()}`,
  );
  return true;
}

async function standbySpec(
  { choice, image, template }: WantedStandbys,
  { config }: Host,
): Promise<MachineSpec> {
  return {
    name: newStandbyName(),
    owner: await ownProcess(MAKING_SECONDS),
    reserve: "free",
    choice,
    advise: templateAdvice(config, { isOperator: true }),
    maxDiskGib: null,
    // The job that takes it brings another key.
    login: choice.settings.ssh.login === "template" ? "own" : "nobody",
    project: null,
    queue: "if there is room",
    instead: null,
    starts: [image === null ? boot : resumeFrom(image, template)],
    hasCard: true,
    master: null,
    keepsPostMortem: false,
  };
}
