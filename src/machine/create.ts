// SPDX-License-Identifier: GPL-2.0-or-later
import { GIB } from "../bytes.ts";
import { explain, SystemFailure } from "../errors.ts";
import { Domain } from "../libvirt/domain.ts";
import { StoragePool } from "../libvirt/storage_pool.ts";
import { MASTER_MIB } from "./connection_master.ts";
import { type Context, type Host, withReconnect } from "./context.ts";
import { createLogin, type MachineLogin, volumeContents } from "./login.ts";
import type { Machine, MachineSpec, NewMachine, Started } from "./machine.ts";
import { EMPTY_METADATA, type MachineMetadata, type Owner } from "./metadata.ts";
import { reserveMachine } from "./name.ts";
import { type Card, randomMac, withCurrentLease } from "./network/card.ts";
import { isolate, requireNetwork } from "./network/isolation.ts";
import type { Subnet } from "./network/network_info.ts";
import { type Admission, tryAdmission, waitForAdmission } from "./queue/admission.ts";
import { waitForProject } from "./queue/project_limit.ts";
import { removeMachineSafely } from "./remove.ts";
import { createVolumes } from "./storage/disks.ts";
import { lookupOverlayPool } from "./storage/pools.ts";
import { findTemplate, type Template } from "./storage/template.ts";
import { shownName, volumeName } from "./storage/volume_names.ts";
import { removeVolume } from "./storage/volumes.ts";

/**
 * Creates a machine once there is room for it, and waits until it is ready. If that fails, or the signal
 * aborts, it removes what it created. Null if there is no room and the spec does not wait. Throws
 * BuildFailure if the template does not exist, NameTaken or SystemFailure.
 */
export async function create(spec: MachineSpec, context: Context): Promise<Machine | null> {
  const { host, report, signal } = context;
  await findFitting(spec, host); // fails before anything is created
  const subnets = spec.hasCard ? await requireNetwork(host.connection, spec.choice.settings) : [];
  using pool = await lookupOverlayPool(host);
  await reserveMachine(spec, pool, context);
  await using undo = new AsyncDisposableStack(); // only now the name is ours
  undo.defer(() => undoCreate(spec.name, context));
  // Once more: while a machine has a name and no disk yet, no version of a template is removed.
  let template = await findFitting(spec, host);

  const waitedSeconds = await waitForProject(spec.name, { pool, project: spec.project }, context);
  if (waitedSeconds > 0) {
    report.steps.end("project");
    template = await findFitting(spec, host); // it may have been replaced
  }
  const instead = async (): Promise<Machine | null> =>
    await spec.instead?.(spec, { template, pool }, context) ?? null;
  const masterMib = spec.master === null ? 0 : MASTER_MIB;
  const room = { pool, memoryMib: spec.choice.settings.memoryMib + masterMib };
  const got = await instead() ??
    (spec.queue === "wait"
      ? await waitForAdmission(spec.name, { ...room, waitedSeconds, instead }, context)
      : await tryAdmission(spec.name, room, context));
  if (got === null) return null;
  if ("metadata" in got) { // a standby machine, which is ours now
    signal.throwIfAborted();
    undo.move();
    return got;
  }
  if (got.hasWaited) template = await findFitting(spec, host); // it may have changed meanwhile
  report.steps.end("turn");

  const machine = await makeParts(spec, { template, subnets, pool }, host);
  signal.throwIfAborted();
  const metadata = await startInOneWay(spec, machine, { admission: got, pool }, context);
  signal.throwIfAborted();
  undo.move(); // from here on, cleanup removes it
  return { name: spec.name, domain: spec.name, metadata };
}

/** The template as it is now. Throws SystemFailure if it is larger than the spec allows. */
async function findFitting(
  { choice, advise, maxDiskGib }: MachineSpec,
  host: Host,
): Promise<Template> {
  const template = await findTemplate(host, choice, advise);
  const gib = Math.ceil(template.capacityBytes / GIB);
  if (maxDiskGib === null || gib <= maxDiskGib) return template;
  throw new SystemFailure({
    fault: "settings",
    what:
      `The template's disk "${
        shownName(template.volume)
      }" has ${gib} GiB, but "limits.disk_gib" is ` +
      `${maxDiskGib}`,
    advice: 'Raise "limits.disk_gib" to at least that, or shrink the template',
  });
}

/** Creates all parts of the machine but its disk and its domain. */
async function makeParts(
  { name, owner, choice, login: keys, hasCard, master }: MachineSpec,
  { template, subnets, pool }: {
    readonly template: Template;
    readonly subnets: readonly Subnet[];
    readonly pool: StoragePool;
  },
  host: Host,
): Promise<NewMachine> {
  const { settings } = choice;
  const login = await createLogin(name, { keys, settings }, host);
  const volumes = await createVolumes(pool, name, volumeContents(name, login, settings));
  const { filter, card } = hasCard
    ? await isolate(name, { settings, subnets }, host.connection)
    : { filter: null, card: null };
  const metadata = newMetadata(owner, { template: choice.name, login, settings, card });
  return { name, metadata, settings, template, login, filter, card, master, ...volumes };
}

/** The metadata of a machine that is not ready yet. */
export function newMetadata(
  owner: Owner,
  { template, login, settings, card }: {
    readonly template: string;
    readonly login: MachineLogin;
    readonly settings: NewMachine["settings"];
    readonly card: Card | null;
  },
): MachineMetadata {
  return {
    ...EMPTY_METADATA,
    ...owner,
    template,
    mac: card?.mac ?? randomMac(),
    user: settings.ssh.user,
    port: settings.ssh.port,
    key: login.key.file,
    shell: settings.guest.shell,
    hostKey: login.hostKey?.fingerprint ?? "",
    keepMinutes: owner.attemptDir === "" ? null : settings.keepMinutes, // by hand it stays
  };
}

/** Starts the machine in the first way that works, and waits until it is ready. */
async function startInOneWay(
  spec: MachineSpec,
  machine: NewMachine,
  { admission, pool }: { readonly admission: Admission; readonly pool: StoragePool },
  context: Context,
): Promise<MachineMetadata> {
  const { host, report, signal } = context;
  for (const [i, start] of spec.starts.entries()) {
    const isLast = i === spec.starts.length - 1;
    try {
      const next = i === 0 ? machine : await withCurrentCard(machine, host);
      using started = await start(next, pool, context);
      if (started === null) continue;
      spec.master?.start();
      if (isLast) await admission.leave(); // the domain counts now
      const keeps = isLast && spec.keepsPostMortem;
      const metadata = await reachOrExamine(started, { keeps }, context);
      if (!isLast) await admission.leave(); // only now: a second start needs the same room
      return metadata;
    } catch (error) {
      if (isLast) throw error;
      signal.throwIfAborted();
      report.warn(`Cannot resume the machine "${spec.name}", so it boots: ${explain(error)}`);
      await removeAttempt(spec.name, pool.name, context);
    }
  }
  throw new Error("the last way to start a machine is always there");
}

/** Waits until it is ready. A failure tells what is known of the machine, before undo removes it. */
async function reachOrExamine(
  { domain: { name }, reach }: Started,
  { keeps }: { readonly keeps: boolean },
  context: Context,
): Promise<MachineMetadata> {
  try {
    return await reach(context);
  } catch (cause) {
    const { host, signal } = context;
    if (signal.aborted) throw cause;
    const { withPostMortem } = await import("./post_mortem/post_mortem.ts"); // rarely needed
    const failure = new SystemFailure({ what: `The machine "${name}" did not start`, cause });
    const postMortem = keeps ? host.config.postMortem : { ...host.config.postMortem, count: 0 };
    const config = { ...host.config, postMortem };
    throw await withPostMortem(name, failure, { ...context, host: { ...host, config } });
  }
}

/** The machine with its card's lease as it is now: the guest of a failed start may have one. */
async function withCurrentCard(machine: NewMachine, { connection }: Host): Promise<NewMachine> {
  const { card, settings } = machine;
  if (card === null) return machine;
  return { ...machine, card: await withCurrentLease(connection, settings.network.name, card) };
}

/** Removes what a failed start left, so that the machine can start in another way. */
async function removeAttempt(machine: string, poolName: string, context: Context): Promise<void> {
  await withReconnect(context, async ({ host: { connection } }) => {
    using pool = await StoragePool.lookup(connection, poolName);
    using domain = await Domain.find(connection, machine);
    await domain?.destroy();
    await removeVolume(pool, volumeName(machine, "ram"));
    await removeVolume(pool, volumeName(machine, "overlay"));
  });
}

/** Removes the machine. If that fails it only warns: the caller throws what failed first. */
async function undoCreate(machine: string, context: Context): Promise<void> {
  try {
    await removeMachineSafely(machine, context);
  } catch (error) {
    context.report.warn(`Could not remove the failed machine "${machine}": ${explain(error)}`);
  }
}
