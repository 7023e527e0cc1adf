// SPDX-License-Identifier: GPL-2.0-or-later
import { moment } from "../duration.ts";
import { explain, orFailure } from "../errors.ts";
import { isKeyFileOf, keyFile, removeKeyFile, writeKeyFile } from "../guest/key_file.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Domain } from "../libvirt/domain.ts";
import { type Context, type Host, withConnection } from "./context.ts";
import { findDomainOf } from "./lookup.ts";
import { findMetadata, isKept, type MachineMetadata, writeMetadata } from "./metadata.ts";
import { stepsWithKept } from "./next_steps.ts";
import { quoted } from "../quoted.ts";

/** A script of the job. */
export interface JobScript {
  /** The stage of GitLab's that it is. */
  readonly name: string;
  /** Writes a line to the job's log, after the script's output. */
  readonly say: (line: string) => void;
}

/** Stages whose failure GitLab ignores. */
const IGNORED: readonly string[] = ["after_script", "cleanup_file_variables"];

/** Whether the machine is to be kept if a script fails now. */
export function isFirstFailure({ keepMinutes, failed }: MachineMetadata): boolean {
  return keepMinutes !== null && keepMinutes > 0 && failed === "";
}

/**
 * Notes that a script of the job failed, so that cleanup keeps the machine, and says what to do with it.
 * It never fails: the script's failure counts.
 */
export async function noteFailure(
  machine: string,
  script: JobScript,
  context: Context,
): Promise<void> {
  if (IGNORED.includes(script.name)) return;
  try {
    await note(machine, script, context.host).catch(async () => {
      await using fresh = await context.host.connect(); // once, since the job waits for this
      await note(machine, script, withConnection(context, fresh).host);
    });
  } catch (error) {
    script.say(`The machine "${machine}" is not kept: ${explain(error)}`);
  }
}

/** As {@linkcode noteFailure}, unless the machine is not to be kept, or is for an earlier failure. */
export async function noteFirstFailure(
  machine: string,
  script: JobScript,
  context: Context,
): Promise<void> {
  using domain = await Domain.find(context.host.connection, machine);
  const metadata = domain && await findMetadata(domain);
  if (metadata !== null && isFirstFailure(metadata)) await noteFailure(machine, script, context);
}

async function note(
  machine: string,
  { name, say }: JobScript,
  { connection, config: { host: { maxKeptMachines } } }: Host,
): Promise<void> {
  using domain = await Domain.find(connection, machine);
  const metadata = domain && await findMetadata(domain);
  if (domain === null || metadata === null) return;
  const minutes = metadata.keepMinutes ?? 0;
  const promisedUntil = Date.now() + minutes * 60_000;
  await writeMetadata(domain, { ...metadata, failed: name, promisedUntil });
  // Counted after that, so that two failures at once do not overlook each other.
  if (await countKept(connection) > maxKeptMachines) {
    await writeMetadata(domain, { ...metadata, failed: name, keepMinutes: null });
    return say(
      `The machine "${machine}" is not kept after the job: at most ${maxKeptMachines} may be kept ` +
        `at once ("host.max_kept_machines")`,
    );
  }
  say(
    `The stage ${quoted(name)} failed, so the machine "${machine}" is kept for ${minutes} min ` +
      `after the job, until ${moment(promisedUntil)} or later, with everything that the job left ` +
      "there, including secrets",
  );
  stepsWithKept(machine, metadata).forEach(say);
}

/** How many machines are kept, or will be when their jobs end. */
async function countKept(connection: Connection): Promise<number> {
  using domains = await Domain.listActive(connection);
  const all = await Promise.all(domains.map(findMetadata));
  return all.filter((metadata) =>
    metadata !== null && (isKept(metadata) || metadata.promisedUntil !== null)
  ).length;
}

/** As {@linkcode notePass}, if the metadata names this script's failure. */
export async function notePassOf(
  machine: string,
  script: JobScript,
  { connection }: Host,
): Promise<void> {
  using domain = await Domain.find(connection, machine);
  const metadata = domain && await findMetadata(domain);
  if (domain !== null && metadata?.failed === script.name) await notePass(domain, script);
}

/** Takes back {@linkcode noteFailure}, after GitLab ran the script again with success. */
export async function notePass(domain: Domain, { name, say }: JobScript): Promise<void> {
  try {
    const metadata = await findMetadata(domain);
    if (metadata === null) return;
    await writeMetadata(domain, { ...metadata, failed: "", promisedUntil: null });
    say(`The stage ${quoted(name)} passed when it was retried, so the machine is not kept`);
  } catch (error) {
    say(
      `The machine is kept, although the stage ${quoted(name)} passed when it was retried: ${
        explain(error)
      }`,
    );
  }
}

/**
 * Keeps the machine at the end of its job, if a script failed or a person asked for it. Its key leaves the
 * attempt's directory, which GitLab Runner removes next. Resolves to whether the machine is kept.
 */
export async function keepAfterJob(machine: string, { host, report }: Context): Promise<boolean> {
  using domain = await findDomainOf(machine, host);
  const metadata = domain && await findMetadata(domain);
  if (domain === null || metadata === null) return false;
  const keptUntil = endOfKeeping(metadata);
  if (keptUntil <= Date.now()) return false;
  try {
    const key = await moveKey(domain.name, metadata.key, host.directories.lastingKeys);
    const kept = { ...metadata, key, keptUntil, promisedUntil: null, deadline: keptUntil };
    await writeMetadata(domain, kept);
  } catch (error) {
    report.warn(`Cannot keep the machine "${domain.name}": ${explain(error)}`);
    return false;
  }
  const failed = metadata.failed === ""
    ? ""
    : `: the stage ${quoted(metadata.failed)} of its job failed`;
  report.log(`Kept the machine "${domain.name}" until ${moment(keptUntil)}${failed}`);
  stepsWithKept(domain.name, metadata).forEach(report.log);
  return true;
}

/** Until when to keep the machine, in milliseconds; 0 is not at all. */
function endOfKeeping(metadata: MachineMetadata): number {
  const asked = metadata.keptUntil ?? 0;
  if (isKept(metadata) || metadata.failed === "") return asked;
  return Math.max(asked, Date.now() + (metadata.keepMinutes ?? 0) * 60_000);
}

/** Moves the machine's own key to the directory, and gives its file. A key of the settings stays. */
async function moveKey(machine: string, file: string, directory: string): Promise<string> {
  const lasting = keyFile(directory, machine);
  if (!isKeyFileOf(machine, file) || file === lasting) return file;
  const privateKey = await orFailure(Deno.readTextFile(file), {
    what: `Cannot read the key of the machine "${machine}" in "${file}"`,
    advice: "Run libvirt-gci as GitLab Runner's user, or give this user read access to it",
  });
  await removeKeyFile(lasting); // of a cleanup that was killed here
  return await writeKeyFile(directory, machine, privateKey);
}
