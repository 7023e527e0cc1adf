// SPDX-License-Identifier: GPL-2.0-or-later
import type { Job } from "../job/job.ts";
import { isLibvirtError, orNull, VIR_ERR } from "../libvirt/error.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import type { Volume } from "../libvirt/volume.ts";
import { type Owner, parseOwner } from "./metadata.ts";
import { hostMark, processMark } from "./process.ts";
import { volumeName } from "./storage/volume_names.ts";
import { rootOf, textAt } from "../read_xml.ts";

/** GitLab Runner needs it to notice that the time is over, to stop the script and to clean up. */
const MARGIN_SECONDS = 600;

/**
 * How long a machine's volumes may be without one that says whose they are: prepare makes that
 * first and then fills it, and earlier versions made none.
 */
const UNSAID_SECONDS = 600;

/**
 * The owner of a machine that is made now. `timeoutSeconds` is the job's; without an attempt's
 * directory, it is a person's machine. Who calls prepare and called config before is GitLab Runner: a
 * script around a stage is another process each time.
 */
export function newOwner(
  job: Pick<Job, "id" | "project" | "timeoutSeconds" | "attemptDir" | "configCaller">,
): Promise<Owner> {
  const runner = job.attemptDir === null ? "" : processMark(Deno.ppid) ?? "";
  return ownerNow({
    job: job.id ?? "",
    project: job.project ?? "",
    attemptDir: job.attemptDir ?? "",
    runner,
    isRunner: runner === job.configCaller,
  }, job.timeoutSeconds);
}

/** The owner of a machine that is no job's yet: nobody needs it if this process ends meanwhile. */
export function ownProcess(timeoutSeconds: number): Promise<Owner> {
  const runner = processMark(Deno.pid) ?? "";
  const whose = { job: "", project: "", attemptDir: "", runner, isRunner: false };
  return ownerNow(whose, timeoutSeconds);
}

async function ownerNow(
  whose: Omit<Owner, "created" | "deadline" | "host">,
  timeoutSeconds: number | null,
): Promise<Owner> {
  const created = Date.now();
  const deadline = timeoutSeconds === null
    ? null
    : created + (timeoutSeconds + MARGIN_SECONDS) * 1000;
  return { ...whose, created, deadline, host: await hostMark() };
}

/** What a machine's volume says of its owner, or why nobody can need it that says nothing. */
export type OwnerFound = Owner | { readonly why: string } | "unknown";

/** Reads the owner's volume of a machine; null if there is none. */
export async function findOwner(pool: StoragePool, machine: string): Promise<OwnerFound | null> {
  using volume = await pool.findVolume(volumeName(machine, "owner"));
  if (volume === null) return null;
  try {
    const owner = parseOwner(new TextDecoder().decode(await volume.download(0)));
    if (owner !== null) return owner;
  } catch (error) {
    if (isLibvirtError(error, VIR_ERR.NO_STORAGE_VOL)) return null; // cleaned up just now
    if (isLibvirtError(error, VIR_ERR.NO_SUPPORT)) return "unknown"; // libvirt's test driver
    if (!isLibvirtError(error, VIR_ERR.OPERATION_INVALID)) throw error; // prepare is filling it
  }
  return await isFresh(volume) ? "unknown" : { why: "prepare was killed while creating it" };
}

/**
 * Whether somebody wrote to the volume in the last ten minutes; false where libvirt does not say.
 */
export async function isFresh(volume: Volume): Promise<boolean> {
  const xml = await orNull(VIR_ERR.NO_STORAGE_VOL, volume.xml());
  const modified = xml === null ? null : textAt(rootOf(xml), "target", "timestamps", "mtime");
  return modified !== null && Date.now() / 1000 - Number(modified) < UNSAID_SECONDS;
}
