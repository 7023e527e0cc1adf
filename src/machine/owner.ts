// SPDX-License-Identifier: GPL-2.0-or-later
import type { Job } from "../job/job.ts";
import { isLibvirtError, orNull, VIR_ERR } from "../libvirt/error.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import type { Volume } from "../libvirt/volume.ts";
import { type Owner, parseOwner } from "./metadata.ts";
import { hostMark, processMark } from "./process.ts";
import { volumeName } from "./storage/volume_names.ts";
import { readVolumeXml } from "./storage/volumes.ts";

/** GitLab Runner's time to notice the timeout, stop the script and clean up. */
const MARGIN_SECONDS = 600;
/** How long a volume may exist before its owner's: an owner's volume is empty at first. */
const UNSAID_SECONDS = 600;

/**
 * The owner of a new machine. Without an attempt's directory, it is a person's machine. A process that
 * called both config and prepare is GitLab Runner: a script around a stage is a new process each time.
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

/** The owner of a machine without a job. The machine is not needed once this process has ended. */
export function ownProcess(timeoutSeconds: number): Promise<Owner> {
  const runner = processMark(Deno.pid) ?? "";
  const whose = { job: "", project: "", attemptDir: "", runner, isRunner: false };
  return ownerNow(whose, timeoutSeconds);
}

/**
 * The deadline is when GitLab has certainly ended the job: its timeout and a margin from now. It is kept
 * in the owner's volume and in the domain's metadata, and unneeded.ts reads it: a machine past its deadline
 * is removed by gc. A person's machine has none. The command keep and the end of a job whose machine is
 * kept (kept.ts) set another. It ends with the machine.
 */
async function ownerNow(
  whose: Omit<Owner, "created" | "deadline" | "host">,
  timeoutSeconds: number | null,
): Promise<Owner> {
  const created = Date.now();
  const milliseconds = timeoutSeconds === null ? null : (timeoutSeconds + MARGIN_SECONDS) * 1000;
  const deadline = milliseconds && created + milliseconds;
  return { ...whose, created, deadline, host: await hostMark() };
}

/** A machine's owner, or why the machine has none and is not needed. */
export type OwnerFound = Owner | { readonly why: string } | "unknown";

/** Reads the owner's volume; null if there is none. */
export async function findOwner(pool: StoragePool, machine: string): Promise<OwnerFound | null> {
  using volume = await pool.findVolume(volumeName(machine, "owner"));
  if (volume === null) return null;
  try {
    const owner = parseOwner(new TextDecoder().decode(await volume.download(0)));
    if (owner !== null) return owner;
  } catch (error) {
    if (isLibvirtError(error, VIR_ERR.NO_STORAGE_VOL)) return null; // just removed
    if (isLibvirtError(error, VIR_ERR.NO_SUPPORT)) return "unknown"; // libvirt's test driver
    if (!isLibvirtError(error, VIR_ERR.OPERATION_INVALID)) throw error; // not complete yet
  }
  return await isFresh(volume) ? "unknown" : { why: "prepare was killed while creating it" };
}

/** Whether the volume was written to in the last ten minutes; false if libvirt does not say. */
export async function isFresh(volume: Volume): Promise<boolean> {
  const xml = await orNull(VIR_ERR.NO_STORAGE_VOL, volume.xml());
  const modified = xml === null ? 0 : Number(readVolumeXml(xml).modified);
  return Date.now() / 1000 - modified < UNSAID_SECONDS;
}
