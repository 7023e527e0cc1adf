// SPDX-License-Identifier: GPL-2.0-or-later
import { controlSocket } from "../guest/master/control_socket.ts";
import { NewMaster, type StartMaster } from "../guest/master/new_master.ts";
import { type Job, makeUpMachineName } from "../job/job.ts";
import { masterTask } from "./connection_master.ts";
import { type Context, type Host, type Reporter, withOwnSteps } from "./context.ts";
import { create } from "./create.ts";
import type { Machine, MachineSpec, Start, UseAnother } from "./machine.ts";
import { newOwner } from "./owner.ts";
import { CHANNEL_ADDRESS } from "./ssh_channel.ts";
import { boot } from "./start.ts";
import { listTemplateVolumes } from "./storage/template.ts";
import { sweep } from "./unneeded.ts";
import { decide, type Decision } from "../policy/decide.ts";
import { TemplateRefusal } from "../policy/template_choice.ts";
import { quoted } from "../quoted.ts";
import type { MachineSettings } from "../settings/settings.ts";

/** What the machine is to have besides. */
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

/** What few machines need is loaded for them alone. */
const useStandby: UseAnother = async (...args) =>
  await (await import("./standby/hand_over.ts")).useStandby(...args);

async function waysToStart({ start }: MachineSettings): Promise<Start[]> {
  if (start === "cold") return [boot];
  const { resume } = await import("./warm/resume.ts"); // most jobs never need it
  return [resume, boot];
}
