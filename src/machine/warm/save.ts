// SPDX-License-Identifier: GPL-2.0-or-later
import { BuildFailure, severalFailures, SystemFailure } from "../../errors.ts";
import { exerciseSsh, requireBooted, stopProcesses, takeIdentity } from "../../guest/identity.ts";
import { makeKeyPair } from "../../guest/key.ts";
import type { Domain } from "../../libvirt/domain.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { MachineSettings } from "../../settings/machine_settings.ts";
import { refuseEnded } from "../network/address.ts";
import { watchKvm } from "../kvm/kvm_fault.ts";
import { ownProcess } from "../owner.ts";
import { bytesBeforeRam, HEADER_BYTES } from "./saved_image.ts";
import { agentOf } from "../ssh_channel.ts";
import { createDisk, createVolumes, startMachine } from "../start.ts";
import { findTemplate, type Template } from "../storage/template.ts";
import { leaveQueue } from "../queue/queue_entry.ts";
import { createRawVolume } from "../storage/volumes.ts";
import {
  findFitting,
  findWarmImages,
  makerOf,
  newWarmId,
  removeWarmImage,
  warmIds,
  type WarmImage,
  type WarmName,
  warmOrigin,
  warmVolume,
  writeInfo,
} from "./warm_image.ts";
import { chooseTemplate, templateAdvice, templatesToResume } from "../../policy/template_choice.ts";
import { type Limits, NotYet, waitFor } from "../../wait.ts";
import { waitForRoom } from "../queue/admission.ts";
import { reserveAbandonedName } from "../name.ts";
import { removeMachineSafely } from "../remove.ts";
import { toHostName, volumeContents } from "../login.ts";
import { newMetadata } from "../create.ts";
import { lookupOverlayPool } from "../storage/overlay_pool.ts";
import type { Stage } from "../context.ts";
import { StepTimer } from "../steps.ts";

/**
 * Makes the warm images of these templates anew where they do not hold any more: a machine of the
 * template boots without a network card, and its RAM is saved. Without any, of all of which the settings
 * want machines resumed. It goes on where it cannot make one, and throws SystemFailure in the end, or
 * BuildFailure for a template that there is not.
 */
export async function warm(templates: readonly string[], stage: Stage): Promise<void> {
  const names = templates.length > 0
    ? templates
    : templatesToResume(stage.config).map(({ name }) => name);
  if (names.length === 0) {
    stage.log('No template that the settings name has "start" at warm or auto, or "standby"');
  }
  const failures: unknown[] = [];
  for (const name of names) {
    try {
      await warmTemplate(name, stage);
    } catch (error) {
      stage.signal.throwIfAborted();
      failures.push(error);
    }
  }
  if (failures.length === 1) throw failures[0];
  if (failures.length > 1) {
    throw severalFailures({ what: `Cannot make ${failures.length} warm images` }, failures);
  }
}

async function warmTemplate(requested: string, stage: Stage): Promise<void> {
  const { config, connection, log } = stage;
  const choice = chooseTemplate(config, requested, { isOperator: true });
  const { name, settings } = choice;
  const template = await findTemplate(connection, {
    ...choice,
    advise: templateAdvice(config, { isOperator: true }),
    pool: config.templatePool,
  });
  const origin = await warmOrigin(connection, { template, settings });
  using pool = await lookupOverlayPool(connection, config.overlayPool);
  const before = await findWarmImages(pool, name);
  const fitting = findFitting(before, origin);
  if (fitting !== undefined) {
    log(`The template "${name}" has a warm image, made ${fitting.created}: nothing to do`);
    return;
  }
  const timer = new StepTimer(null);
  const image = { template: name, id: newWarmId(), created: new Date().toISOString(), origin };
  await make(image, { template, settings, pool, timer }, stage);
  log(`The template "${name}" is warm after ${timer.summary()}`);
  for (const old of before) await drop(old, pool, stage);
  if (settings.start === "cold") {
    stage.warn(`Its jobs still boot: set "start" of the template "${name}" to warm or auto`);
  }
}

/** What a warm image is made with. */
interface Making {
  readonly template: Template;
  readonly settings: MachineSettings;
  readonly pool: StoragePool;
  readonly timer: StepTimer;
}

/** The most that what comes after the boot may take. */
const SAVING_SECONDS = 3600;

/** Makes the image and, with its last step, puts it in place; else nothing is left of it. */
async function make(
  image: Omit<WarmImage, "bytesBeforeRam">,
  { template, settings, pool, timer }: Making,
  stage: Stage,
): Promise<void> {
  const { config, connection, log, progress, signal } = stage;
  const maker = await makerOf(image.template);
  const seconds = settings.addressSeconds + settings.sshSeconds;
  const longest = config.admissionSeconds + seconds + SAVING_SECONDS;
  const owner = await ownProcess(longest);
  if (!await reserveAbandonedName(pool, { name: maker, owner }, stage)) {
    throw otherMaker(maker, image.template);
  }
  await using undo = new AsyncDisposableStack();
  undo.defer(() => removeMachineSafely(maker, { ...stage, log: () => {} }));
  await using undoImage = new AsyncDisposableStack();
  undoImage.defer(async () => {
    await removeMachineSafely(maker, { ...stage, log: () => {} }); // which runs on the disk
    await removeWarmImage(pool, image);
  });

  const { turn } = await waitForRoom(maker, { pool, memoryMib: settings.memoryMib }, stage);
  timer.end("turn");
  const overlayPath = await createDisk(pool, maker, {
    ...{ template, diskGib: settings.diskGib },
    volume: warmVolume(image.template, image.id, "disk"),
  });
  const login = {
    key: { ...await makeKeyPair(), file: "" }, // nobody has it
    hostKey: settings.login === "template" ? null : await makeKeyPair(),
  };
  const volumes = await createVolumes(pool, maker, volumeContents(maker, login, settings));
  const record = newMetadata(owner, { template: image.template, login, settings, card: null });
  using domain = await startMachine(connection, {
    ...{
      name: maker,
      record,
      settings,
      filter: null,
      card: null,
      overlayPath,
      ...volumes,
    },
    isWarm: true,
  }, { template, signal });
  if (turn !== null) await leaveQueue(pool, turn); // the domain counts now
  const { domainType } = settings;
  log(`Started a machine from the template "${image.template}" to save its RAM (${domainType})`);
  timer.end("start");
  const watch = watchKvm({ settings, connection });
  await bootUp(domain, settings, watch, { log, progress, signal, timeoutSeconds: seconds });
  timer.end("boot");
  await tryIdentity(domain, maker, settings, signal);
  timer.end("rehearsal");

  signal.throwIfAborted();
  using ram = await createRawVolume(pool, warmVolume(image.template, image.id, "ram"), 0);
  await stopProcesses(agentOf(domain));
  await domain.save(await ram.path());
  timer.end("save");
  const header = await ram.download(0, HEADER_BYTES);
  await writeInfo(pool, { ...image, bytesBeforeRam: bytesBeforeRam(header) });
  undoImage.move();
}

function otherMaker(maker: string, template: string): SystemFailure {
  return new SystemFailure({
    what: `Another process makes a warm image of "${template}"`,
    advice: `Wait for it; or remove what is left: libvirt-gci cleanup --machine ${maker}`,
  });
}

/** Waits until the guest has booted and does what a clone of it will have to do. */
async function bootUp(
  domain: Domain,
  { port }: MachineSettings,
  watch: () => Promise<void>,
  limits: Limits,
): Promise<void> {
  const agent = agentOf(domain);
  await waitFor({
    goal: "finish its boot, as its guest agent sees it",
    awaited: "its boot",
    advice:
      "Have the template start an SSH server, and a qemu-guest-agent that allows guest-exec " +
      "(Fedora and RHEL forbid it in /etc/sysconfig/qemu-ga)",
    fault: "template",
    probe: async () => {
      await refuseEnded(domain);
      await watch();
      try {
        await requireBooted(agent, port);
        return true;
      } catch (error) {
        return new NotYet(error instanceof Error ? error.message : String(error));
      }
    },
  }, limits);
}

/** Throws SystemFailure now if a clone of the guest could not take an identity of its own. */
async function tryIdentity(
  domain: Domain,
  maker: string,
  { login, user, port }: MachineSettings,
  signal: AbortSignal,
): Promise<void> {
  const agent = agentOf(domain);
  const { publicKey } = await makeKeyPair();
  const identity = {
    ...{ hostName: toHostName(maker), hostKey: await makeKeyPair(), user },
    publicKey: login === "template" ? null : publicKey,
  };
  const isAnother = await takeIdentity(agent, identity);
  await isAnother(signal);
  await exerciseSsh(agent, port);
}

/** Removes the warm images of these templates. Throws BuildFailure for a template without any. */
export async function removeWarmImages(templates: readonly string[], stage: Stage): Promise<void> {
  const { config, connection } = stage;
  for (const requested of templates) {
    const { name } = chooseTemplate(config, requested, { isOperator: true });
    using pool = await lookupOverlayPool(connection, config.overlayPool);
    const images = [...warmIds(await pool.volumeNames())].filter(([, template]) =>
      template === name
    );
    if (images.length === 0) {
      throw new BuildFailure({
        what: `The template "${name}" has no warm image`,
        advice: "See what there is: libvirt-gci list",
      });
    }
    for (const [id, template] of images) await drop({ id, template }, pool, stage);
  }
}

async function drop(
  image: WarmName,
  pool: StoragePool,
  { log }: Pick<Stage, "log">,
): Promise<void> {
  const users = await removeWarmImage(pool, image);
  log(
    `Removed a warm image of "${image.template}"` +
      (users.length === 0
        ? ""
        : `, but for its disk, which gc removes when these machines are gone: ${users.join(", ")}`),
  );
}
