// SPDX-License-Identifier: GPL-2.0-or-later
import { BuildFailure, type Fault, faultOf } from "../errors.ts";
import { GuestFull } from "../guest/script.ts";
import type { JobScript } from "./kept.ts";

/** Faults with which the machine has ended: it is useless to keep it. */
const ENDS: readonly Fault[] = ["guest_ended", "storage"];
const LOSSES: readonly Fault[] = [...ENDS, "lost", "ssh_refused", "ssh_timeout", "host_key"];

/** Whether the machine has ended, by the error of its script. */
export function isEnd(error: unknown): boolean {
  return ENDS.includes(faultOf(error));
}

/** Whether the machine has ended or cannot be reached. */
export function isLoss(error: unknown): boolean {
  return LOSSES.includes(faultOf(error));
}

/** The error; it is the job's fault if the job has filled its guest. */
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
