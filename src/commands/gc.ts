// SPDX-License-Identifier: GPL-2.0-or-later
import { durationOption, switchFlag } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { durationText, secondsSince } from "../duration.ts";
import { StoragePool } from "../libvirt/storage_pool.ts";
import type { Context } from "../machine/context.ts";
import { findMachines, type FoundMachine } from "../machine/inventory.ts";
import { standbysAssignedTo } from "../machine/lookup.ts";
import { entriesIn, isLiveEntry, leaveQueue, longestQueueSeconds } from "../machine/queue/queue.ts";
import { removeStandby } from "../machine/remove.ts";
import { assignmentsIn, waitingIn } from "../machine/standby/waiting.ts";
import { findWanted, unwantedOf } from "../machine/standby/wanted.ts";
import { findActivePool } from "../machine/storage/pools.ts";
import { removableVersions } from "../machine/storage/template_users.ts";
import { endedUploads, removeVersion } from "../machine/storage/template_versions.ts";
import { removeVolume } from "../machine/storage/volumes.ts";
import { lookupNeed, type Need, removeFound } from "../machine/unneeded.ts";
import { findDeadWarmImages, removeWarmImage } from "../machine/warm/warm_image.ts";
import { Problems } from "../problems.ts";
import { sleep } from "../wait.ts";

export const command = defineCommand("gc", {
  description: "Remove machines and leftovers that are no longer needed.",
  footer:
    "A job's machine is needed until ten minutes after the job's timeout, or until GitLab Runner has ended and the attempt's directory is gone. A machine created by hand is needed until you remove it.",
  fields: {
    dryRun: switchFlag("--dry-run", "Print what would be removed, and remove nothing."),
    olderThanSeconds: durationOption(
      "--older-than",
      "Also remove machines that are older than this, such as 90m, 2h or 7d, even if a running job uses them.",
      undefined,
    ),
  },
  countedAs: ({ dryRun }) => dryRun ? null : "gc",
  run: ({ dryRun, olderThanSeconds = null }, { onHost }) =>
    onHost((context) => gc({ dryRun, olderThanSeconds }, context)),
});

/** The options of gc. */
export interface GcOptions {
  /** Only log what would be removed. */
  readonly dryRun?: boolean;
  /** Also remove machines that may be needed, if they are older than this; null removes none of those. */
  readonly olderThanSeconds?: number | null;
}

/**
 * Removes every machine that is no longer needed, also incomplete ones, and logs a line for each. Other
 * gcs and stages may run meanwhile. Throws SystemFailure in the end if it could not remove some.
 */
export async function gc(
  { dryRun = false, olderThanSeconds = null }: GcOptions,
  context: Context,
): Promise<void> {
  const problems = new Problems();
  const removal = { dryRun, problems, context };
  // A machine goes together with the standby machines that it took over, so it comes before them.
  const found = (await findStill(context))
    .sort((a, b) => standbysOf(b).length - standbysOf(a).length);
  const gone = new Set<FoundMachine>();
  for (const machine of found) {
    context.signal.throwIfAborted();
    if (gone.has(machine)) continue;
    await problems.collect(async () => {
      const need = await lookupNeed(machine, context.host); // this may have changed by now
      const why = need.why ?? whyTooOld(need, olderThanSeconds);
      if (why === null) {
        if (!dryRun) await removeDeadEntries(machine, context);
        return;
      }
      const all = await withTakenOver(machine, found, context);
      const what = `"${machine.name}" (${partsOf(all)}): ${why}`;
      await remove(what, () => removeFound(machine, need, context), removal);
      for (const each of all) gone.add(each);
    });
  }
  for (const removeMore of [removeDeadWarmImages, removeDeadVersions, removeUnwantedStandbys]) {
    await problems.collect(() => removeMore(removal), context.signal);
  }
  const { length } = problems.errors;
  problems.throwAll({
    what: `Cannot remove ${length === 1 ? "a machine" : `${length} machines`} no longer needed`,
    advice: "Fix the problems below and run gc again, or wait for its next run",
  });
}

/** How gc removes things. */
interface Removal {
  readonly dryRun: boolean;
  readonly problems: Problems;
  readonly context: Context;
}

/**
 * Removes something and logs that, or in a dry run only logs it. The body resolves to false if it is
 * gone.
 */
async function remove(
  what: string,
  body: () => Promise<unknown>,
  { dryRun, context: { report: { log } } }: Removal,
): Promise<void> {
  if (dryRun) log(`Would remove ${what}`);
  else if (await body() !== false) log(`Removed ${what}`);
}

/** The standby machines that the machine took over, or tried to. */
function standbysOf({ volumes }: FoundMachine): string[] {
  return assignmentsIn(volumes.map(({ name }) => name)).map(({ standby }) => standby);
}

/** The machine and the standby machines that go with it: none if it has its own domain instead. */
async function withTakenOver(
  machine: FoundMachine,
  found: readonly FoundMachine[],
  context: Context,
): Promise<FoundMachine[]> {
  if (machine.hasDomain || standbysOf(machine).length === 0) return [machine];
  const names = await standbysAssignedTo(machine.name, context.host);
  return [machine, ...found.filter(({ name }) => names.includes(name))];
}

/** Removes the queue entries of a prepare that was killed, although the machine is needed. */
async function removeDeadEntries(
  { name, volumes }: FoundMachine,
  { host: { connection, config }, report: { log } }: Context,
): Promise<void> {
  const names = volumes.filter(({ pool }) => pool === config.pools.overlays).map(({ name }) =>
    name
  );
  for (const entry of entriesIn(names)) {
    if (await isLiveEntry(entry, { longestSeconds: longestQueueSeconds(config.host) })) continue;
    using pool = await StoragePool.lookup(connection, config.pools.overlays);
    await leaveQueue(pool, entry);
    log(`Removed the queue entry of "${name}": its prepare has ended`);
  }
}

async function removeDeadWarmImages(removal: Removal): Promise<void> {
  const { connection, config } = removal.context.host;
  using pool = await findActivePool(connection, config.pools.overlays);
  if (pool === null) return;
  for (const image of await findDeadWarmImages(pool)) {
    const what = `a warm image of "${image.template}": it is incomplete, or there is a newer one`;
    const body = () => removeWarmImage(pool, image);
    await removal.problems.collect(() => remove(what, body, removal));
  }
}

/** Removes the versions of templates that no job gets any more, and what killed uploads left. */
async function removeDeadVersions(removal: Removal): Promise<void> {
  const { problems, context: { host } } = removal;
  using pool = await findActivePool(host.connection, host.config.pools.templates);
  if (pool === null) return;
  for (const version of await removableVersions(pool, host)) {
    const what = version.isComplete
      ? `an old version of the template "${version.template}": there is a newer one`
      : `an upload of the template "${version.template}": it ended before it was complete`;
    await problems.collect(() => remove(what, () => removeVersion(pool, version), removal));
  }
  if (removal.dryRun) return;
  for (const volume of await endedUploads(await pool.volumeNames())) {
    await problems.collect(() => removeVolume(pool, volume));
  }
}

/** Removes the machines that wait for jobs which no job could get. */
async function removeUnwantedStandbys(removal: Removal): Promise<void> {
  const { problems, context } = removal;
  using pool = await findActivePool(context.host.connection, context.host.config.pools.overlays);
  const volumes = await pool?.volumeNames() ?? [];
  if (pool === null || waitingIn(volumes).length === 0) return;
  for (const standby of unwantedOf(await findWanted(context.host), volumes)) {
    const what = `"${standby.name}": standby machine that matches no setting any more`;
    const body = () => removeStandby(standby, pool, context);
    await problems.collect(() => remove(what, body, removal));
  }
}

const TRACE_MS = 5000;

/**
 * The machines that exist. A machine with only a filter or a key counts if that is so a little later
 * too: a prepare with other settings may be about to start its domain.
 */
async function findStill(context: Context): Promise<FoundMachine[]> {
  const machines = await findMachines(context, { refresh: true });
  if (!machines.some(isTrace)) return machines;
  await sleep(TRACE_MS, context.signal);
  const traces = (await findMachines(context, { refresh: false })).filter(isTrace);
  const stay = new Set(traces.map(({ name }) => name));
  return machines.filter((machine) => !isTrace(machine) || stay.has(machine.name));
}

function whyTooOld({ owner }: Need, olderThanSeconds: number | null): string | null {
  const seconds = secondsSince(owner?.created ?? Date.now());
  return olderThanSeconds !== null && seconds > olderThanSeconds
    ? `it was created ${durationText(seconds)} ago`
    : null;
}

/** The parts of these machines, such as `domain, 5 volumes, network filter, key`. */
function partsOf(machines: readonly FoundMachine[]): string {
  const volumes = machines.flatMap((machine) => machine.volumes).length;
  return [
    ...(machines.some(({ hasDomain }) => hasDomain) ? ["domain"] : []),
    ...(volumes > 0 ? [`${volumes} volume${volumes === 1 ? "" : "s"}`] : []),
    ...(machines.some(({ hasFilter }) => hasFilter) ? ["network filter"] : []),
    ...(machines.some(({ hasKey }) => hasKey) ? ["key"] : []),
  ].join(", ");
}

/** Whether only its filter or its key is left, which do not name an owner. */
function isTrace({ hasDomain, volumes }: FoundMachine): boolean {
  return !hasDomain && volumes.length === 0;
}
