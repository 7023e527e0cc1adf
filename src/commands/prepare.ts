// SPDX-License-Identifier: GPL-2.0-or-later
import { distroOption, machineOption, option } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { controlSocket } from "../guest/master/control_socket.ts";
import { NewMaster, type StartMaster } from "../guest/master/new_master.ts";
import { type Job, jobFromEnv, makeUpMachineName } from "../job/job.ts";
import { masterTask } from "../machine/connection_master.ts";
import { type Context, type Host, type Reporter, withOwnSteps } from "../machine/context.ts";
import { create } from "../machine/create.ts";
import type { Machine, MachineSpec, Start, UseAnother } from "../machine/machine.ts";
import { stepsByHand } from "../machine/next_steps.ts";
import { newOwner } from "../machine/owner.ts";
import { CHANNEL_ADDRESS } from "../machine/ssh_channel.ts";
import { boot } from "../machine/start.ts";
import { listTemplateVolumes } from "../machine/storage/template.ts";
import { sweep } from "../machine/unneeded.ts";
import { decide, type Decision } from "../policy/decide.ts";
import { TemplateRefusal } from "../policy/template_choice.ts";
import { quoted } from "../quoted.ts";
import type { MachineSettings } from "../settings/settings.ts";

export const command = defineCommand("prepare", {
  description: "Start a machine for the job and wait until it accepts logins.",
  footer: "By hand, without `--machine`, the machine gets a generated name, which is printed.",
  fields: {
    distro: distroOption,
    machine: machineOption,
    keyFile: option(
      "--ssh-key-file",
      "PATH",
      "The private key to log in with, instead of the one in the settings.",
    ),
  },
  countedAs: () => "prepare",
  refills: true,
  run: async (options, { env, onHost, printer, startMaster }) => {
    const job = await jobFromEnv(env, options);
    await onHost(async (context) => {
      const { name, metadata } = await prepare(job, { ...options, startMaster }, context);
      if (job.byHand) stepsByHand(name, metadata).forEach((line) => printer.print(line));
    });
  },
});

/** Options of the machine. */
interface PrepareOptions {
  /** `--ssh-key-file`: the private key to log in with, instead of the one in the settings. */
  readonly keyFile?: string | undefined;
  /** Starts the process of a connection master; without, there is none. */
  readonly startMaster?: StartMaster;
}

/**
 * Creates a machine for the job and waits until a command runs in it. If that fails, or the signal
 * aborts, undoes what it did. Throws BuildFailure if the job asks for too much, else SystemFailure.
 */
export async function prepare(
  job: Job,
  { keyFile, startMaster }: PrepareOptions,
  context: Context,
): Promise<Machine> {
  const timed = withOwnSteps(context);
  const { log, steps } = timed.report;
  const decision = await decideHere(job, context.host);
  const name = job.machine ?? makeUpMachineName(decision.choice.name);
  warnOfServices(job, context.report);
  await sweep(name, context);
  const socket = socketFor(job, decision);
  using master = startMaster && socket !== null ? new NewMaster(startMaster) : null;
  const machine = await create(await specOf(name, job, decision, { keyFile, master }), timed);
  if (machine === null) throw new Error("a job's machine waits for room");
  if (socket !== null) {
    const { metricsFile } = context.host.config;
    await master?.give(masterTask(machine, { socket, metricsFile }));
  }
  const { address } = machine.metadata;
  const where = address === CHANNEL_ADDRESS ? "without a network" : `at ${address}`;
  log(`The machine "${name}" is ready ${where} in ${steps.summary()}`);
  return machine;
}

/** Where the connection master of the job's machine can listen; null if it can have none. */
function socketFor({ attemptDir }: Job, { choice: { settings } }: Decision): string | null {
  return attemptDir === null || settings.network.name === "none" ? null : controlSocket(attemptDir);
}

const MOST_NAMES = 10;

/** Warns that the job's `services:` are not started. */
function warnOfServices({ services }: Job, { warn }: Reporter): void {
  if (services.length === 0) return;
  const names = services.slice(0, MOST_NAMES).map(quoted).join(", ");
  const more = services.length > MOST_NAMES ? `, and ${services.length - MOST_NAMES} more` : "";
  warn(
    `The job's services are not started, because libvirt-gci starts no containers: ` +
      `${names}${more}. Start them in the job's script, or install them in the template`,
  );
}

/** As decide(), but a refusal names the templates that are there. */
async function decideHere(job: Job, host: Host): Promise<Decision> {
  try {
    return decide(job, host.config);
  } catch (refusal) {
    if (!(refusal instanceof TemplateRefusal)) throw refusal;
    const volumes = await listTemplateVolumes(host).catch(() => null);
    throw volumes === null ? refusal : refusal.withVolumes(volumes); // which stands in any case
  }
}

async function specOf(
  name: string,
  job: Job,
  { choice, advise, rule }: Decision,
  { keyFile, master }: { readonly keyFile: string | undefined; readonly master: NewMaster | null },
): Promise<MachineSpec> {
  const { settings } = choice;
  return {
    name,
    owner: await newOwner(job),
    reserve: "free",
    choice,
    advise,
    maxDiskGib: settings.limits.diskGib,
    login: keyFile === undefined ? "own" : { keyFile },
    project: job.byHand || job.project === null ? null : { path: job.project, rule },
    queue: "wait",
    instead: settings.standby === 0 ? null : useStandby,
    starts: await waysToStart(settings),
    hasCard: true,
    master,
    keepsPostMortem: true,
  };
}

/** Loaded only for the few machines that need it. */
const useStandby: UseAnother = async (...args) =>
  await (await import("../machine/standby/hand_over.ts")).useStandby(...args);

async function waysToStart({ start }: MachineSettings): Promise<Start[]> {
  if (start === "cold") return [boot];
  const { resume } = await import("../machine/warm/resume.ts"); // most jobs never need it
  return [resume, boot];
}
