// SPDX-License-Identifier: GPL-2.0-or-later
import { BuildFailure, SystemFailure } from "../../errors.ts";
import { exerciseSsh, stopProcesses, takeIdentity } from "../../guest/identity.ts";
import { makeKeyPair } from "../../guest/key.ts";
import { Domain } from "../../libvirt/domain.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { type Context, quiet, withOwnSteps } from "../context.ts";
import { create } from "../create.ts";
import { toHostName } from "../login.ts";
import { type MachineSpec, type Start, startedAs } from "../machine.ts";
import { NameTaken } from "../name.ts";
import { ownProcess } from "../owner.ts";
import { bootSeconds, waitForBoot } from "../reach.ts";
import { removeMachineSafely } from "../remove.ts";
import { agentOf } from "../ssh_channel.ts";
import { startMachine } from "../start.ts";
import { createDisk } from "../storage/disks.ts";
import { lookupOverlayPool } from "../storage/pools.ts";
import { findTemplate } from "../storage/template.ts";
import { volumeName } from "../storage/volume_names.ts";
import { createRawVolume } from "../storage/volumes.ts";
import { bytesBeforeRam, HEADER_BYTES } from "./saved_image.ts";
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
  writeInfo,
} from "./warm_image.ts";
import { chooseTemplate, templateAdvice, templatesToResume } from "../../policy/template_choice.ts";
import { Problems } from "../../problems.ts";
import type { MachineSettings } from "../../settings/settings.ts";

/**
 * Creates new warm images of these templates, or of all that the settings want resumed, unless their
 * images are valid. A failure does not stop the others. Throws SystemFailure, or BuildFailure for an
 * unknown template, in the end.
 */
export async function warm(templates: readonly string[], context: Context): Promise<void> {
  const names = templates.length > 0
    ? templates
    : templatesToResume(context.host.config).map(({ name }) => name);
  if (names.length === 0) {
    context.report.log(
      'No warm images are created, because no template in the settings sets "standby", or "start" to warm or auto',
    );
  }
  const problems = new Problems();
  for (const name of names) {
    await problems.collect(() => warmTemplate(name, context), context.signal);
  }
  const { errors } = problems;
  if (errors.length === 1) throw errors[0];
  problems.throwAll({ what: `Cannot create ${errors.length} warm images` });
}

async function warmTemplate(requested: string, context: Context): Promise<void> {
  const { host, report: { log, warn } } = context;
  const { config, connection } = host;
  const choice = chooseTemplate(config, requested, { isOperator: true });
  const advise = templateAdvice(config, { isOperator: true });
  const { name, settings } = choice;
  const template = await findTemplate(host, choice, advise);
  const origin = await warmOrigin(connection, { template, settings });
  using pool = await lookupOverlayPool(host);
  const before = await findWarmImages(pool, name);
  const fitting = findFitting(before, origin);
  if (fitting !== undefined) {
    log(`The template "${name}" already has a valid warm image, created ${fitting.created}`);
    return;
  }
  const image = { template: name, id: newWarmId(), created: new Date().toISOString(), origin };
  const timed = withOwnSteps(context);
  await make(image, { choice, advise, pool }, timed);
  log(`The warm image of "${name}" is ready in ${timed.report.steps.summary()}`);
  for (const old of before) await drop(old, pool, context);
  if (settings.start === "cold") {
    warn(`Jobs do not use the image yet: set "start" of the template "${name}" to warm or auto`);
  }
}

/** The most time for all after the boot. */
const SAVING_SECONDS = 3600;

/**
 * Boots a machine of the template without a network card and saves its RAM. The last step makes the image
 * valid; if one fails, the image is removed.
 */
async function make(
  image: Omit<WarmImage, "bytesBeforeRam">,
  { choice, advise, pool }: Pick<MachineSpec, "choice" | "advise"> & { readonly pool: StoragePool },
  context: Context,
): Promise<void> {
  const { host, report: { steps }, signal } = context;
  const { settings } = choice;
  const maker = await makerOf(image.template);
  const longest = host.config.host.queueSeconds + bootSeconds(settings) + SAVING_SECONDS;
  await using undoImage = new AsyncDisposableStack();
  undoImage.defer(async () => void await removeWarmImage(pool, image));
  await create({
    name: maker,
    owner: await ownProcess(longest),
    reserve: "abandoned",
    choice,
    advise,
    maxDiskGib: null,
    login: "nobody",
    project: null,
    queue: "wait",
    instead: null,
    starts: [bootToSave(image)],
    hasCard: false,
    master: null,
    keepsPostMortem: false,
  }, context).catch((error) => {
    throw error instanceof NameTaken ? otherMaker(maker, image.template) : error;
  });
  await using undo = new AsyncDisposableStack(); // runs before undoImage: the machine uses its disk
  undo.defer(() => removeMachineSafely(maker, quiet(context)));
  using domain = await Domain.lookup(host.connection, maker);
  await tryIdentity(domain, maker, settings, signal);
  steps.end("rehearsal");

  signal.throwIfAborted();
  using ram = await createRawVolume(pool, volumeName(image.template, "warm-ram", image.id), 0);
  await stopProcesses(agentOf(domain));
  await domain.save(await ram.path());
  steps.end("save");
  const header = await ram.download(0, HEADER_BYTES);
  await writeInfo(pool, { ...image, bytesBeforeRam: bytesBeforeRam(header) });
  undoImage.move();
}

/** Boots the machine on the disk of this image. */
function bootToSave({ template: templateName, id }: WarmName): Start {
  return async (machine, pool, { host: { connection }, report, signal }) => {
    const { name, template, settings } = machine;
    const { diskGib, domainType } = settings;
    const volume = volumeName(templateName, "warm-disk", id);
    const overlayPath = await createDisk(pool, name, { template, diskGib, volume });
    const onDisk = { ...machine, overlayPath, isWarm: true };
    const domain = await startMachine(connection, onDisk, { template, signal });
    report.log(
      `Started a machine from the template "${templateName}" to save its RAM (${domainType})`,
    );
    report.steps.end("start");
    return startedAs(domain, async (context) => {
      await waitForBoot(domain, settings, context);
      return machine.metadata; // no one else uses it
    });
  };
}

function otherMaker(maker: string, template: string): SystemFailure {
  return new SystemFailure({
    what: `Another process is already creating a warm image of "${template}"`,
    advice: `Wait for it, or remove its leftovers: libvirt-gci cleanup --machine ${maker}`,
  });
}

/** Checks that a clone of the guest can take its own identity. Throws SystemFailure. */
async function tryIdentity(
  domain: Domain,
  maker: string,
  { ssh: { login, user, port } }: MachineSettings,
  signal: AbortSignal,
): Promise<void> {
  const agent = agentOf(domain);
  const hostName = toHostName(maker);
  const hostKey = await makeKeyPair();
  const publicKey = login === "template" ? null : (await makeKeyPair()).publicKey;
  const finish = await takeIdentity(agent, { hostName, hostKey, user, publicKey });
  await finish(signal);
  await exerciseSsh(agent, port);
}

/** Removes the warm images of these templates. Throws BuildFailure if a template has none. */
export async function removeWarmImages(
  templates: readonly string[],
  context: Context,
): Promise<void> {
  const { config } = context.host;
  for (const requested of templates) {
    const { name } = chooseTemplate(config, requested, { isOperator: true });
    using pool = await lookupOverlayPool(context.host);
    const images = [...warmIds(await pool.volumeNames())].filter(([, of]) => of === name);
    if (images.length === 0) {
      throw new BuildFailure({
        what: `The template "${name}" has no warm image`,
        advice: "List the warm images: libvirt-gci list",
      });
    }
    for (const [id, template] of images) await drop({ id, template }, pool, context);
  }
}

async function drop(
  image: WarmName,
  pool: StoragePool,
  { report: { log } }: Context,
): Promise<void> {
  const users = await removeWarmImage(pool, image);
  log(
    `Removed a warm image of "${image.template}"` +
      (users.length === 0
        ? ""
        : `, except for its disk, which gc removes after these machines: ${users.join(", ")}`),
  );
}
