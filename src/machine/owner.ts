// SPDX-License-Identifier: GPL-2.0-or-later
import { isLibvirtError, orNull, VIR_ERR } from "../libvirt/error.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import type { Volume } from "../libvirt/volume.ts";
import { volumeName } from "./storage/volume_names.ts";
import { hostMark, processMark } from "./process.ts";
import { volumeName } from "./storage/volumes.ts";
import { rootOf, textAt } from "../read_xml.ts";

/** Whose a machine is, and what tells whether anybody still needs it. */
export interface Owner {
  /** GitLab's id of the job and the path of its project; empty by hand. */
  readonly job: string;
  readonly project: string;
  /** ISO 8601. */
  readonly created: string;
  /**
   * When GitLab has ended the job for sure, or until when the machine is kept after it, ISO 8601;
   * empty if unknown.
   */
  readonly deadline: string;
  /** The directory that GitLab Runner removes after the attempt; empty by hand. */
  readonly attemptDir: string;
  /**
   * The process that needs it, see processMark: GitLab Runner, or our own while it makes
   * the machine for later. Empty by hand.
   */
  readonly runner: string;
  /** `yes` if that is GitLab Runner for sure, and no script that it calls a stage by; else empty. */
  readonly isRunner: string;
  /** Where that directory and that process are, see hostMark. */
  readonly host: string;
}

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
export function newOwner({ id, project, timeoutSeconds, attemptDir, configCaller }: {
  readonly id: string | null;
  readonly project: string | null;
  readonly timeoutSeconds: number | null;
  readonly attemptDir: string | null;
  readonly configCaller: string | null;
}): Promise<Owner> {
  const runner = attemptDir === null ? "" : processMark(Deno.ppid) ?? "";
  const isRunner = runner === configCaller ? "yes" : "";
  const whose = { job: id ?? "", project: project ?? "", attemptDir: attemptDir ?? "" };
  return ownerNow({ ...whose, runner, isRunner }, { timeoutSeconds });
}

/** The owner of a machine that is no job's yet: nobody needs it if this process ends meanwhile. */
export function ownProcess(timeoutSeconds: number): Promise<Owner> {
  const runner = processMark(Deno.pid) ?? "";
  const whose = { job: "", project: "", attemptDir: "" };
  return ownerNow({ ...whose, runner, isRunner: "" }, { timeoutSeconds });
}

async function ownerNow(
  whose: Omit<Owner, "created" | "deadline" | "host">,
  { timeoutSeconds }: { readonly timeoutSeconds: number | null },
): Promise<Owner> {
  const now = Date.now();
  const milliseconds = timeoutSeconds && (timeoutSeconds + MARGIN_SECONDS) * 1000;
  return {
    ...whose,
    created: new Date(now).toISOString(),
    deadline: milliseconds === null ? "" : new Date(now + milliseconds).toISOString(),
    host: await hostMark(),
  };
}

/** The seconds since it was made; NaN if it does not say. */
export function ageSeconds({ created }: Pick<Owner, "created">): number {
  return (Date.now() - Date.parse(created)) / 1000;
}

/** Such as `42 s`, `5 min`, `3 h` or `2 d`. */
export function age(seconds: number): string {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return seconds < 48 * 3600
    ? `${Math.round(seconds / 3600)} h`
    : `${Math.round(seconds / 86400)} d`;
}

/** A time in ISO 8601 as people write it, such as `2026-01-31 14:05 UTC`. */
export function moment(time: string): string {
  return `${time.slice(0, 16).replace("T", " ")} UTC`;
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
  return await isFresh(volume) ? "unknown" : { why: "prepare died while it made it" };
}

/**
 * Whether somebody wrote to the volume in the last ten minutes; false where libvirt does not say.
 */
export async function isFresh(volume: Volume): Promise<boolean> {
  const seconds = await secondsUnchanged(volume);
  return seconds !== null && seconds < UNSAID_SECONDS;
}

/** Reads what is in an owner's volume; null if that is nothing, or not all. */
export function parseOwner(json: string): Owner | null {
  let value: Partial<Record<keyof Owner, unknown>> | null;
  try {
    value = JSON.parse(json);
  } catch {
    return null;
  }
  const read = (key: keyof Owner): string => typeof value?.[key] === "string" ? value[key] : "";
  if (read("created") === "") return null;
  return {
    ...{ job: read("job"), project: read("project"), created: read("created") },
    ...{ deadline: read("deadline"), attemptDir: read("attemptDir") },
    ...{ runner: read("runner"), isRunner: read("isRunner"), host: read("host") },
  };
}

/** The seconds since anybody wrote to the volume; null where libvirt does not say. */
async function secondsUnchanged(volume: Volume): Promise<number | null> {
  const xml = await orNull(VIR_ERR.NO_STORAGE_VOL, volume.xml());
  const modified = xml === null ? null : textAt(rootOf(xml), "target", "timestamps", "mtime");
  return modified === null ? null : Date.now() / 1000 - Number(modified);
}
