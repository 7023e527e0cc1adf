// SPDX-License-Identifier: GPL-2.0-or-later
import { BuildFailure, type Fault, faultOf } from "../errors.ts";
import { GuestFull } from "../guest/script.ts";
import type { JobScript } from "./kept.ts";

/** What ends a machine; it is of no use to keep it. */
const ENDS: readonly Fault[] = ["guest_ended", "storage"];
const LOSSES: readonly Fault[] = [...ENDS, "lost", "ssh_refused", "ssh_timeout", "host_key"];

/** Whether the machine ended, by what a script failed with. */
export function isEnd(error: unknown): boolean {
  return ENDS.includes(faultOf(error));
}

/** Whether the machine ended, or cannot be reached. */
export function isLoss(error: unknown): boolean {
  return LOSSES.includes(faultOf(error));
}

/** The error, which is the job's if it has filled its guest. */
export function orFilledByJob(error: unknown, ofJob: JobScript | null): unknown {
  const isLater = ofJob !== null && ofJob.name !== "prepare_script"; // of the same job
  if (!(error instanceof GuestFull) || !isLater) return error;
  return new BuildFailure({
    fault: "script",
    what: error.message,
    advice:
      "Free space in the job's earlier scripts, or set the variable LIBVIRT_GCI_DISK_GIB to a " +
      "larger size",
  });
}
