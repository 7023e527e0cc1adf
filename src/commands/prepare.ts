// SPDX-License-Identifier: GPL-2.0-or-later
import { Domain } from "../libvirt/domain.ts";
import { message, optionName } from "@optique/core/message";
import { optional } from "@optique/core/modifiers";
import { option } from "@optique/core/primitives";
import { string } from "@optique/core/valueparser";
import { distroOption, machineOption } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { explain, SystemFailure } from "../errors.ts";
import { type Job, jobFromEnv, makeUpMachineName } from "../job/job.ts";
import type { Connection } from "../libvirt/connection.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import type { Stage } from "../machine/context.ts";
import {
  boot,
  type DiskSource,
  type Making,
  type NewMachine,
  newMetadata,
  type Wanted,
} from "../machine/create.ts";
import { createLogin, volumeContents } from "../machine/login.ts";
import type { MachineMetadata } from "../machine/metadata.ts";
import { withCurrentLease } from "../machine/network/card.ts";
import { isolate, requireNetwork } from "../machine/network/isolation.ts";
import type { Subnet } from "../machine/network/network_info.ts";
import { stepsByHand } from "../machine/next_steps.ts";
import { newOwner } from "../machine/owner.ts";
import { waitForRoom } from "../machine/queue/admission.ts";
import { waitForProject } from "../machine/queue/project_limit.ts";
import { removeMachineSafely } from "../machine/remove.ts";
import { CHANNEL_ADDRESS } from "../machine/ssh_channel.ts";
import { createVolumes, reserveName } from "../machine/start.ts";
import { StepTimer } from "../machine/steps.ts";
import { lookupOverlayPool } from "../machine/storage/overlay_pool.ts";
import { findTemplate, listTemplateVolumes, type Template } from "../machine/storage/template.ts";
import { volumeName } from "../machine/storage/volumes.ts";
import { sweep } from "../machine/unneeded.ts";
import { decide, type Decision } from "../policy/decide.ts";
import { TemplateRefusal } from "../policy/template_choice.ts";
import { quoted } from "../quoted.ts";
import type { MachineSettings } from "../settings/machine_settings.ts";

export const command = defineCommand("prepare", {
  description: message`Start a machine for the job and wait until it accepts logins.`,
  footer: message`By hand, a machine without ${
    optionName("--machine")
  } gets a generated name, which is printed.`,
  fields: {
    distro: distroOption,
    machine: machineOption,
    keyFile: optional(
      option("--ssh-key-file", string({ metavar: "PATH" }), {
        description: message`The private key to log in with, instead of the one in the settings.`,
      }),
    ),
  },
  countedAs: () => "prepare",
  refills: true,
  run: async (options, { env, onHost, printer }) => {
    const job = await jobFromEnv(env, options);
    await onHost(async (stage) => {
      const { name, record } = await prepare(job, options, stage);
      if (job.byHand) stepsByHand(name, record).forEach((line) => printer.print(line));
    });
  },
});

/** What the command line says to prepare. */
export interface PrepareOptions {
  /** `--ssh-key-file`: the private key to log in with, instead of the one in the settings. */
  readonly keyFile?: string | undefined;
}

/** A machine that is ready, and how to reach it. */
export interface PreparedMachine {
  readonly name: string;
  readonly record: MachineMetadata;
}

/**
 * Makes a machine for the job, once there is room for it, and waits until a command runs in it. If
 * that fails, or the signal aborts, it undoes what it did. Throws BuildFailure if the job asks for what
 * there is not or what it may not have, else SystemFailure.
 */
export async function prepare(
  job: Job,
  { keyFile }: PrepareOptions,
  stage: Stage,
): Promise<PreparedMachine> {
  const { config, connection, log, signal } = stage;
  const began = performance.now();
  const { choice, settings, advise, rule } = await decideHere(job, stage);
  const name = job.machine ?? makeUpMachineName(choice.name);
  warnOfServices(job, stage);
  await sweep(name, stage);

  const findDisk = async (): Promise<DiskSource> => {
    const asked = { ...choice, advise, pool: config.templatePool };
    const template = await findTemplate(connection, asked);
    return { template, diskGib: diskSize(template, settings) };
  };
  const disk = await findDisk();
  const subnets = await requireNetwork(connection, settings);
  using pool = await lookupOverlayPool(connection, config.overlayPool);
  await refuseTakenName(name, connection, pool);

  signal.throwIfAborted();

  const timer = new StepTimer(stage.onStep, began);
  const owner = await newOwner(job);
  if (!await reserveName(pool, name, owner)) throw takenName(name, EARLIER_DISK);
  await using undo = new AsyncDisposableStack(); // only now is the name ours
  undo.defer(() => undoPrepare(name, stage));
  const waitedSeconds = await waitForProject(name, { pool, job, rule }, stage);
  if (waitedSeconds > 0) timer.end("project");
  const wanted: Wanted = {
    ...{ name, owner, template: choice.name, settings },
    ...{ disk: waitedSeconds > 0 ? await findDisk() : disk, keyFile },
  };
  const making = { pool, timer };
  const record = await takeWaiting(wanted, making, stage) ??
    await make(wanted, { ...making, waitedSeconds, findDisk, subnets }, stage);
  signal.throwIfAborted();

  undo.move(); // The machine now lives until cleanup.
  const where = record.address === CHANNEL_ADDRESS ? "without a network" : `at ${record.address}`;
  log(`The machine "${name}" is ready ${where} after ${timer.summary()}`);
  return { name, record };
}

const MOST_NAMES = 10;

/** Says that nobody starts the job's `services:`, if it has any. */
function warnOfServices({ services }: Job, { warn }: Stage): void {
  if (services.length === 0) return;
  const names = services.slice(0, MOST_NAMES).map(quoted).join(", ");
  const more = services.length > MOST_NAMES ? `, and ${services.length - MOST_NAMES} more` : "";
  warn(
    `This job's services are not started: ${names}${more}. libvirt-gci starts no containers: ` +
      "start what the job needs in its script, in the machine, or install it in the template",
  );
}

/** As decide(), but a refusal names the templates that are there. */
async function decideHere(job: Job, { config, connection }: Stage): Promise<Decision> {
  try {
    return decide(job, config);
  } catch (refusal) {
    if (!(refusal instanceof TemplateRefusal)) throw refusal;
    const volumes = await listTemplateVolumes(connection, config.templatePool).catch(() => null);
    throw volumes === null ? refusal : refusal.withVolumes(volumes); // which stands in any case
  }
}

async function takeWaiting(
  wanted: Wanted,
  making: Pick<Making, "pool" | "timer">,
  stage: Stage,
): Promise<MachineMetadata | null> {
  if (wanted.settings.standby === 0) return null;
  return await (await import("../machine/standby/hand_over.ts")).useStandby(wanted, making, stage);
}

/** Makes the machine once there is room for it, resumed or booted. */
async function make(
  wanted: Wanted,
  { pool, timer, waitedSeconds, findDisk, subnets }: Pick<Making, "pool" | "timer"> & {
    readonly waitedSeconds: number;
    readonly findDisk: () => Promise<DiskSource>;
    readonly subnets: readonly Subnet[];
  },
  stage: Stage,
): Promise<MachineMetadata> {
  const { name, owner, template, settings, keyFile } = wanted;
  const admitted = await waitForRoom(name, {
    ...{ pool, memoryMib: settings.memoryMib, waitedSeconds },
    instead: () => takeWaiting(wanted, { pool, timer }, stage),
  }, stage);
  if ("machine" in admitted) return admitted;
  const { turn, hasWaited } = admitted;
  const disk = hasWaited ? await findDisk() : wanted.disk; // somebody may have replaced the template
  timer.end("turn");
  const login = await createLogin(name, { keyFile, settings }, stage);
  const volumes = await createVolumes(pool, name, volumeContents(name, login, settings));
  const isolated = await isolate(name, { settings, subnets }, stage.connection);
  stage.signal.throwIfAborted();

  const record = newMetadata(owner, { template, login, settings, card: isolated.card });
  const machine: NewMachine = {
    ...{ name, record, settings, disk, login, ...isolated, ...volumes },
  };
  const making = { pool, turn, timer };
  if (settings.start === "cold") return await boot(machine, making, stage);
  const resumed = await (await import("../machine/warm/resume.ts")).resume(machine, making, stage);
  if (resumed !== null) return resumed;
  const card = machine.card &&
    await withCurrentLease(stage.connection, settings.network, machine.card);
  return await boot({ ...machine, card }, making, stage);
}

/** The size to make the disk, which is the template's own at least. Throws SystemFailure. */
function diskSize(
  { volume, capacityBytes }: Template,
  { diskGib, maxDiskGib }: MachineSettings,
): number | null {
  const templateGib = Math.ceil(capacityBytes / 1024 ** 3);
  if (maxDiskGib === null || templateGib <= maxDiskGib) return diskGib;
  throw new SystemFailure({
    fault: "settings",
    what:
      `The template's disk "${volume}" has ${templateGib} GiB, and max_disk_gib is ${maxDiskGib}`,
    advice: "Have the settings raise max_disk_gib to at least that, or make the template smaller",
  });
}

/** Says early what {@linkcode reserveName} would refuse, and whose name it cannot know of. */
async function refuseTakenName(
  machine: string,
  connection: Connection,
  pool: StoragePool,
): Promise<void> {
  using domain = await Domain.find(connection, machine);
  if (domain !== null) throw takenName(machine, "a domain");
  using owner = await pool.findVolume(volumeName(machine, "owner"));
  using overlay = await pool.findVolume(volumeName(machine, "overlay"));
  if (owner !== null || overlay !== null) throw takenName(machine, EARLIER_DISK);
}

const EARLIER_DISK = "a disk of an earlier machine";

function takenName(machine: string, what: string): SystemFailure {
  return new SystemFailure({
    what: `There is ${what} "${machine}" already`,
    advice: `Remove the machine if nobody needs it: libvirt-gci cleanup --machine ${machine}; ` +
      "or choose another name",
  });
}

/** Removes what a failed prepare made. The failure is what the caller hears of, not this. */
async function undoPrepare(machine: string, stage: Stage): Promise<void> {
  try {
    await removeMachineSafely(machine, stage);
  } catch (error) {
    stage.warn(`Could not remove the machine "${machine}" again: ${explain(error)}`);
  }
}
