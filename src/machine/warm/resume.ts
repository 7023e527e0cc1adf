// SPDX-License-Identifier: GPL-2.0-or-later
import { explain } from "../../errors.ts";
import { type Identity, takeIdentity } from "../../guest/identity.ts";
import { makeKeyPair } from "../../guest/key.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { Domain, VIR_DOMAIN_SAVE_RESET_NVRAM } from "../../libvirt/domain.ts";
import { isLibvirtError } from "../../libvirt/error.ts";
import { StoragePool } from "../../libvirt/storage_pool.ts";
import { refuseEnded } from "../network/address.ts";
import { interfaceXml, type MachineDomain, withFilterLater } from "../domain_xml.ts";
import type { MachineMetadata } from "../metadata.ts";
import { restoreInPlace } from "./restore.ts";
import { savedXml, withSavedXml } from "./saved_image.ts";
import { agentOf } from "../ssh_channel.ts";
import { createDisk } from "../start.ts";
import { requireUnchanged } from "../storage/template.ts";
import { leaveQueue } from "../queue/queue_entry.ts";
import { copyRawVolume, removeVolume, volumeName } from "../storage/volumes.ts";
import { chooseWarmImage, type WarmImage, warmVolume } from "./warm_image.ts";
import { xmlForMachine } from "./warm_xml.ts";
import { NotYet, waitFor } from "../../wait.ts";
import { toHostName } from "../login.ts";
import { type Making, type NewMachine, reach } from "../create.ts";
import { withReconnect } from "../reconnect.ts";
import type { Stage } from "../context.ts";

/** A guest that was ready when its RAM was saved needs no time for a boot. */
const PATIENCE_SECONDS = 30;

const AGENT_SECONDS = 10;

/** The most that copying the RAM may take, or reading it, where many do so at once on a slow disk. */
const RESTORE_SECONDS = 600;

/**
 * Resumes the machine from a warm image of its template and waits until it is ready. Null if there is
 * no such image that holds, or if anything goes wrong on the way, which is a warning: then there is
 * nothing left of the attempt, and the machine has to boot.
 */
export async function resume(
  machine: NewMachine,
  making: Making,
  stage: Stage,
): Promise<MachineMetadata | null> {
  const { name } = machine;
  const { pool } = making;
  try {
    const image = await chooseImage(machine, pool, stage);
    if (image === null) return null;
    return await resumeFrom(image, machine, making, stage);
  } catch (error) {
    stage.signal.throwIfAborted();
    stage.warn(`Cannot resume the machine "${name}", so it boots: ${explain(error)}`);
    await withReconnect(stage, (connection) => undo(name, pool.name, connection));
    return null;
  }
}

/** Resumes the machine from this image and waits until it is ready. Throws SystemFailure. */
export async function resumeFrom(
  image: WarmImage,
  machine: NewMachine,
  making: Making,
  stage: Stage,
): Promise<MachineMetadata> {
  const { domain, record, finish } = await start(machine, { image, ...making }, stage);
  using _ = domain;
  stage.log(`Resumed the machine "${machine.name}" from the warm image of "${image.template}"`);
  const reaching = { timer: making.timer, mostSeconds: PATIENCE_SECONDS, finish };
  // The place of a post-mortem is for the machine that boots instead, or for those of jobs.
  const config = { ...stage.config, postMortems: 0 };
  const ready = await reach(domain, { ...machine, record }, reaching, { ...stage, config });
  // Not before: a machine that fails boots in the same place.
  if (making.turn !== null) await leaveQueue(making.pool, making.turn);
  return ready;
}

/** The newest warm image that still holds, or null; `start: warm` says why there is none. */
async function chooseImage(
  { record: { template: name }, disk: { template }, settings }: NewMachine,
  pool: StoragePool,
  { connection, warn }: Stage,
): Promise<WarmImage | null> {
  const of = { name, template, settings };
  const { image, changes } = await chooseWarmImage(connection, pool, of);
  if (image === null && settings.start === "warm") {
    warn(
      (changes === null
        ? `There is no warm image of "${name}"`
        : `The warm image of "${name}" was made before a change of ${changes}, or for others`) +
        `, so the machine boots. The host's administrator can make one: libvirt-gci warm ${name}`,
    );
  }
  return image;
}

/** A machine whose guest works at becoming another. */
interface Resumed {
  readonly domain: Domain;
  readonly record: MachineMetadata;
  /** Waits until it is another, and removes the copy of the RAM, if there is one. */
  readonly finish: (signal: AbortSignal) => Promise<void>;
}

/** Starts it with a card, keys and an identity of its own. */
async function start(
  machine: NewMachine,
  { image, ...making }: Making & { readonly image: WarmImage },
  stage: Stage,
): Promise<Resumed> {
  const { connection, signal, log, progress } = stage;
  const { name, settings, login } = machine;
  const { pool, timer } = making;
  const hostKey = login.hostKey ?? await makeKeyPair();
  const record = { ...machine.record, hostKey: hostKey.fingerprint };
  const overlayPath = await createFrozenOverlay(machine, image, pool);
  timer.end("overlay");
  await restore({ ...machine, record, overlayPath }, { image, ...making }, stage);

  using undo = new DisposableStack();
  const domain = undo.use(await Domain.lookup(connection, name));
  const hasCard = settings.network !== "none";
  if (hasCard) {
    // The kernel sees it, and what would ask for an address stands still until the guest is another.
    await domain.attachDevice(interfaceXml(withFilterLater(machine)).toString());
    timer.end("card");
  }
  const agent = agentOf(domain);
  const identity: Identity = {
    hostName: toHostName(name),
    ...{ hostKey, user: settings.user },
    publicKey: settings.login === "template" ? null : login.key.publicKey,
  };
  const isAnother = await waitFor({
    goal: "answer through its guest agent",
    awaited: "its guest agent",
    probe: () =>
      orNotYet(domain, async () => {
        await agent({ execute: "guest-ping" }, 1);
        return await takeIdentity(agent, identity);
      }),
    advice: `Make the warm image again: libvirt-gci warm ${record.template}`,
    fault: "template",
  }, { log, progress, signal, timeoutSeconds: AGENT_SECONDS });
  timer.end("agent");
  if (!hasCard) {
    await isAnother(signal); // or its agent would start an SSH server with the former key
    timer.end("identity");
  }
  const finish = async (signal: AbortSignal): Promise<void> => {
    if (hasCard) {
      await isAnother(signal);
      timer.end("identity");
    }
    await removeVolume(pool, volumeName(name, "ram"));
  };
  undo.move();
  return { domain, record, finish };
}

/**
 * Starts the domain from the RAM of the image: on a connection of its own, since reading it, or a copy
 * of it, may take longer than a call may, and what is left of an attempt is removed on the other one.
 */
async function restore(
  machine: NewMachine & Pick<MachineDomain, "overlayPath">,
  { image, pool: { name: poolName }, timer }: Making & { readonly image: WarmImage },
  { config, connect, signal, warn }: Stage,
): Promise<void> {
  await using connection = await connect(Math.max(config.callSeconds, RESTORE_SECONDS));
  using pool = await StoragePool.lookup(connection, poolName);
  using ram = await pool.lookupVolume(warmVolume(image.template, image.id, "ram"));
  const saved = await ram.download(0, image.bytesBeforeRam);
  const beforeRam = withSavedXml(saved, xmlForMachine(savedXml(saved), machine));
  // Its own variables of the firmware are a part of the RAM, which QEMU writes over the template's.
  const flags = machine.nvramPath === null ? 0 : VIR_DOMAIN_SAVE_RESET_NVRAM;
  if (!await restoreInPlace({ ram, beforeRam, flags }, connection, warn)) {
    signal.throwIfAborted();
    using copy = await copyRawVolume(pool, volumeName(machine.name, "ram"), ram);
    await copy.upload(beforeRam);
    timer.end("RAM");
    signal.throwIfAborted();
    await Domain.restore(connection, await copy.path(), flags);
  }
  await requireUnchanged(connection, machine.disk.template);
  timer.end("resume");
}

/**
 * At first, the agent may not know yet that somebody asks again, or libvirt that the agent is there: it
 * sees to no such news while it changes another thing of the machine, such as its card.
 */
async function orNotYet<T>(domain: Domain, ask: () => Promise<T>): Promise<T | NotYet> {
  try {
    return await ask();
  } catch (error) {
    if (!isLibvirtError(error)) throw error;
    await refuseEnded(domain, error);
    return new NotYet(error.words);
  }
}

async function createFrozenOverlay(
  { name, disk: { template, diskGib } }: NewMachine,
  image: WarmImage,
  pool: StoragePool,
): Promise<string> {
  using base = await pool.lookupVolume(warmVolume(image.template, image.id, "disk"));
  const frozen = { ...template, path: await base.path(), format: "qcow2" };
  return await createDisk(pool, name, { template: frozen, diskGib });
}

/** Removes what an attempt made, so that the machine can boot. */
async function undo(machine: string, poolName: string, connection: Connection): Promise<void> {
  using pool = await StoragePool.lookup(connection, poolName);
  using domain = await Domain.find(connection, machine);
  await domain?.destroy();
  await removeVolume(pool, volumeName(machine, "ram"));
  await removeVolume(pool, volumeName(machine, "overlay"));
}
