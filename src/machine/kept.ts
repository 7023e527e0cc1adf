// SPDX-License-Identifier: GPL-2.0-or-later
import { explain, orFailure, UsageError } from "../errors.ts";
import { deleteKeyFile, isKeyFileOf, keyFile, writeKeyFile } from "../guest/key_file.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Domain } from "../libvirt/domain.ts";
import { hostName, moment } from "./owner.ts";
import { findRecord, isKept, type MachineRecord, writeRecord } from "./metadata.ts";
import { CHANNEL_ADDRESS } from "./ssh_channel.ts";
import { quoted } from "../quoted.ts";
import { lookupReadyMachine } from "./ready_machine.ts";
import type { Stage } from "./context.ts";
import { findDomainOf } from "./lookup.ts";

/** A script as a part of GitLab's job. */
export interface JobScript {
  /** GitLab's name for what the script does. */
  readonly name: string;
  /** Takes a line for the job's log, which follows all that the script wrote. */
  readonly say: (line: string) => void;
}

/** Those whose failure GitLab ignores. */
const IGNORED: readonly string[] = ["after_script", "cleanup_file_variables"];

/** Whether a script of the machine's job that fails now is what the machine is to be kept for. */
export function isFirstFailure({ keepMinutes, failed }: MachineRecord): boolean {
  return Number(keepMinutes) > 0 && failed === "";
}

/**
 * Writes down that a script of the job failed, so that cleanup keeps the machine, and says how to go
 * on. It never fails: the script's failure is what counts. Of a machine that is gone it says nothing.
 */
export async function noteFailure(machine: string, script: JobScript, stage: Stage): Promise<void> {
  if (IGNORED.includes(script.name)) return;
  try {
    await note(machine, script, stage).catch(async () => {
      await using fresh = await stage.connect(); // the daemon may have been started anew
      await note(machine, script, { ...stage, connection: fresh });
    });
  } catch (error) {
    script.say(`The machine "${machine}" is not kept: ${explain(error)}`);
  }
}

async function note(
  machine: string,
  { name, say }: JobScript,
  { connection, config: { maxKeptMachines } }: Pick<Stage, "connection" | "config">,
): Promise<void> {
  using domain = await Domain.find(connection, machine);
  const record = domain && await findRecord(domain);
  if (domain === null || record === null) return;
  const minutes = Number(record.keepMinutes);
  const promisedUntil = new Date(Date.now() + minutes * 60_000).toISOString();
  await writeRecord(domain, { ...record, failed: name, promisedUntil });
  // Counted with that written: of two failures at once, neither overlooks the other.
  if (await countKept(connection) > maxKeptMachines) {
    await writeRecord(domain, { ...record, failed: name, keepMinutes: "" });
    return say(
      `The machine "${machine}" is not kept after the job: no more than ${maxKeptMachines} are at ` +
        "once, by max_kept_machines of this host's settings",
    );
  }
  say(
    `The stage ${quoted(name)} failed, so the machine "${machine}" is kept for ${minutes} min ` +
      `after the job, until ${moment(promisedUntil)} or later, with all that the job left there, ` +
      "secrets too",
  );
  howToGoOn(machine, record).forEach(say);
}

/** How many machines were kept, or will be when their jobs end. */
async function countKept(connection: Connection): Promise<number> {
  using domains = new DisposableStack();
  const records: Promise<MachineRecord | null>[] = [];
  for (const domain of await Domain.listActive(connection)) {
    domains.use(domain);
    records.push(findRecord(domain));
  }
  return (await Promise.all(records)).filter((record) =>
    record !== null && (isKept(record) || record.promisedUntil !== "")
  ).length;
}

/** Takes back what {@linkcode noteFailure} wrote, since GitLab tried the script again with success. */
export async function notePass(domain: Domain, { name, say }: JobScript): Promise<void> {
  try {
    const record = await findRecord(domain);
    if (record === null) return;
    await writeRecord(domain, { ...record, failed: "", promisedUntil: "" });
    say(`The stage ${quoted(name)} passed this time, so the machine is not kept for it`);
  } catch (error) {
    say(`The machine is kept although the stage ${quoted(name)} passed now: ${explain(error)}`);
  }
}

/** What a person can do with a machine that is kept, a line each. */
function howToGoOn(machine: string, { address }: MachineRecord): string[] {
  const where = address === CHANNEL_ADDRESS ? "" : ` (${address})`;
  return [
    `Log in:    libvirt-gci ssh ${machine}, on the host "${hostName()}"${where}`,
    `Keep:      libvirt-gci keep ${machine} --extend 1h`,
    `Remove:    libvirt-gci cleanup --machine ${machine}`,
  ];
}

/**
 * At the end of a job: whether its machine stays, since a script of it failed or somebody said so. If
 * it does, its key leaves the attempt's directory, which GitLab Runner is about to remove. A machine
 * that cannot be kept is not, with a warning.
 */
export async function keepAfterJob(
  machine: string,
  stage: Pick<Stage, "connection" | "config" | "lastingKeyDirectory" | "log" | "warn">,
): Promise<boolean> {
  using domain = await findDomainOf(machine, stage);
  const record = domain && await findRecord(domain);
  if (domain === null || record === null) return false;
  const end = endOfKeeping(record);
  if (end <= Date.now()) return false;
  const keptUntil = new Date(end).toISOString();
  try {
    const key = await moveKey(domain.name, record.key, stage.lastingKeyDirectory);
    const kept = { ...record, key, keptUntil, promisedUntil: "", deadline: keptUntil };
    await writeRecord(domain, kept);
  } catch (error) {
    stage.warn(`Cannot keep the machine "${domain.name}": ${explain(error)}`);
    return false;
  }
  const failed = record.failed === ""
    ? ""
    : `: the stage ${quoted(record.failed)} of its job failed`;
  stage.log(`Kept the machine "${domain.name}" until ${moment(keptUntil)}${failed}`);
  howToGoOn(domain.name, record).forEach(stage.log);
  return true;
}

/** Until when the machine is to stay, in milliseconds; 0 is not at all. */
function endOfKeeping(record: MachineRecord): number {
  const asked = Date.parse(record.keptUntil) || 0;
  if (isKept(record) || record.failed === "") return asked;
  return Math.max(asked, Date.now() + Number(record.keepMinutes) * 60_000);
}

/** Gives the file where the machine's own key lasts; a key of the settings stays where it is. */
async function moveKey(machine: string, file: string, directory: string): Promise<string> {
  const lasting = keyFile(directory, machine);
  if (!isKeyFileOf(machine, file) || file === lasting) return file;
  const privateKey = await orFailure(Deno.readTextFile(file), {
    what: `Cannot read the key of the machine "${machine}" in "${file}"`,
    advice: "Let this user read it, as GitLab Runner's user can",
  });
  await deleteKeyFile(lasting); // of a cleanup that was killed here
  return await writeKeyFile(directory, machine, privateKey);
}

/**
 * Keeps a job's machine so much longer, or, while its job runs, after that. Throws UsageError for a
 * machine by hand, and SystemFailure if it is gone, not ours, or not ready.
 */
export async function keep(
  machine: string,
  extendSeconds: number,
  stage: Pick<Stage, "connection" | "config" | "log">,
): Promise<void> {
  using ready = await lookupReadyMachine(machine, stage);
  const { domain, record } = ready;
  if (record.attemptDir === "") {
    throw new UsageError({
      what: `The machine "${machine}" was made by hand, so it stays as it is`,
      advice: `Remove it when nobody needs it: libvirt-gci cleanup --machine ${machine}`,
    });
  }
  const start = Math.max(Date.now(), Date.parse(record.keptUntil) || 0);
  const keptUntil = new Date(start + extendSeconds * 1000).toISOString();
  const deadline = isKept(record) ? keptUntil : record.deadline;
  await writeRecord(domain, { ...record, keptUntil, deadline });
  stage.log(`The machine "${machine}" is kept until ${moment(keptUntil)}`);
}
