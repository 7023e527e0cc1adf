// SPDX-License-Identifier: GPL-2.0-or-later
import { type Identity, takeIdentity } from "../../guest/identity.ts";
import { type KeyPair, makeKeyPair } from "../../guest/key.ts";
import { Domain, VIR_DOMAIN_SAVE_RESET_NVRAM } from "../../libvirt/domain.ts";
import { isLibvirtError } from "../../libvirt/error.ts";
import { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Context } from "../context.ts";
import { type DomainOnDisk, interfaceXml, withFilterLater } from "../domain_xml.ts";
import { toHostName } from "../login.ts";
import { type NewMachine, type Start, type Started, startedAs } from "../machine.ts";
import { refuseEnded } from "../network/address.ts";
import { reach } from "../reach.ts";
import { agentOf } from "../ssh_channel.ts";
import { createDisk } from "../storage/disks.ts";
import { requireUnchanged, type Template } from "../storage/template.ts";
import { volumeName } from "../storage/volume_names.ts";
import { copyRawVolume, removeVolume } from "../storage/volumes.ts";
import { restoreInPlace } from "./restore.ts";
import { savedXml, withSavedXml } from "./saved_image.ts";
import { chooseWarmImage, type WarmImage } from "./warm_image.ts";
import { xmlForMachine } from "./warm_xml.ts";
import { NotYet, waitFor } from "../../wait.ts";

/** A resumed guest does not boot. */
const PATIENCE_SECONDS = 30;
const AGENT_SECONDS = 10;
/** For reading or copying the RAM, even if many do so on a slow disk. */
const RESTORE_SECONDS = 600;

/** Resumes the machine from this image of this template. */
export function resumeFrom(image: WarmImage, template: Template): Start {
  return (machine, pool, context) => startFrom(image, { ...machine, template }, pool, context);
}

/** The newest valid warm image, or null; with `start: warm` it warns why there is none. */
async function chooseImage(
  { metadata: { template: name }, template, settings }: NewMachine,
  pool: StoragePool,
  { host: { connection }, report: { warn } }: Context,
): Promise<WarmImage | null> {
  const { image, changes } = await chooseWarmImage(connection, pool, { name, template, settings });
  if (image === null && settings.start === "warm") {
    warn(
      (changes === null
        ? `There is no warm image of "${name}"`
        : `The warm image of "${name}" does not match ${changes} any more`) +
        `, so the machine boots. Ask the administrator to create one: libvirt-gci warm ${name}`,
    );
  }
  return image;
}

/** Resumes the machine from the newest valid warm image of its template, if there is one. */
export const resume: Start = async (machine, pool, context) => {
  const image = await chooseImage(machine, pool, context);
  return image && await startFrom(image, machine, pool, context);
};

/** Starts it with its own card, keys and identity. */
async function startFrom(
  image: WarmImage,
  machine: NewMachine,
  pool: StoragePool,
  context: Context,
): Promise<Started> {
  const { host: { connection }, report: { log, steps }, signal } = context;
  const { name, settings } = machine;
  const hostKey = machine.login.hostKey ?? await makeKeyPair();
  const metadata = { ...machine.metadata, hostKey: hostKey.fingerprint };
  const resumed = { ...machine, metadata };
  const overlayPath = await createFrozenOverlay(machine, image, pool);
  steps.end("overlay");
  await restore({ ...resumed, overlayPath }, { image, poolName: pool.name }, context);

  using undo = new DisposableStack();
  const domain = undo.use(await Domain.lookup(connection, name));
  const hasCard = settings.network.name !== "none";
  if (hasCard) {
    // The kernel sees the card, but the DHCP client is stopped until the guest has its identity.
    await domain.attachDevice(interfaceXml(withFilterLater(resumed)).toString());
    steps.end("card");
  }
  const isAnother = await giveIdentity(domain, resumed, hostKey, context);
  const endIdentity = async (signal: AbortSignal): Promise<void> => {
    await isAnother(signal);
    steps.end("identity");
  };
  if (!hasCard) await endIdentity(signal); // or its agent starts an SSH server with the former key
  const finish = async (signal: AbortSignal): Promise<void> => {
    if (hasCard) await endIdentity(signal);
    await removeVolume(pool, volumeName(name, "ram"));
  };
  log(`Resumed the machine "${name}" from the warm image of "${image.template}"`);
  undo.move();
  const options = { mostSeconds: PATIENCE_SECONDS, finish };
  return startedAs(domain, (context) => reach(domain, resumed, options, context));
}

/** Starts to give the guest its identity. Resolves to a function that waits for the end of that. */
async function giveIdentity(
  domain: Domain,
  { name, metadata, settings, login }: NewMachine,
  hostKey: KeyPair,
  { report: { log, progress, steps }, signal }: Context,
): Promise<(signal: AbortSignal) => Promise<void>> {
  const agent = agentOf(domain);
  const identity: Identity = {
    hostName: toHostName(name),
    hostKey,
    user: settings.ssh.user,
    publicKey: settings.ssh.login === "template" ? null : login.key.publicKey,
  };
  const isAnother = await waitFor({
    goal: "answer through its guest agent",
    awaited: "its guest agent",
    probe: () =>
      orNotYet(domain, async () => {
        await agent({ execute: "guest-ping" }, 1);
        return await takeIdentity(agent, identity);
      }),
    advice: `Create the warm image again: libvirt-gci warm ${metadata.template}`,
    fault: "template",
  }, { log, progress, signal, timeoutSeconds: AGENT_SECONDS });
  steps.end("agent");
  return isAnother;
}

/**
 * Starts the domain from the image's RAM, on a connection of its own: reading or copying the RAM may take
 * longer than a call may, and a failed start is removed on the other connection.
 */
async function restore(
  machine: NewMachine & DomainOnDisk,
  { image, poolName }: { readonly image: WarmImage; readonly poolName: string },
  { host: { config, connect }, report: { warn, steps }, signal }: Context,
): Promise<void> {
  await using connection = await connect(Math.max(config.libvirt.callSeconds, RESTORE_SECONDS));
  using pool = await StoragePool.lookup(connection, poolName);
  using ram = await pool.lookupVolume(volumeName(image.template, "warm-ram", image.id));
  const saved = await ram.download(0, image.bytesBeforeRam);
  const beforeRam = withSavedXml(saved, xmlForMachine(savedXml(saved), machine));
  // The firmware's variables are in the RAM, from which QEMU writes them to the new file.
  const flags = machine.nvramPath === null ? 0 : VIR_DOMAIN_SAVE_RESET_NVRAM;
  if (!await restoreInPlace({ ram, beforeRam, flags }, connection, warn)) {
    signal.throwIfAborted();
    using copy = await copyRawVolume(pool, volumeName(machine.name, "ram"), ram);
    await copy.upload(beforeRam);
    steps.end("RAM");
    signal.throwIfAborted();
    await Domain.restore(connection, await copy.path(), flags);
  }
  await requireUnchanged(connection, machine.template);
  steps.end("resume");
}

/** Turns an error of libvirt into NotYet: the agent, or libvirt's state of it, may need a moment. */
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
  { name, template, settings: { diskGib } }: NewMachine,
  image: WarmImage,
  pool: StoragePool,
): Promise<string> {
  using base = await pool.lookupVolume(volumeName(image.template, "warm-disk", image.id));
  const frozen = { ...template, path: await base.path(), format: "qcow2" };
  return await createDisk(pool, name, { template: frozen, diskGib });
}
