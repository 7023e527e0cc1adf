// SPDX-License-Identifier: GPL-2.0-or-later
import type { MasterTask } from "../guest/master/master.ts";
import { isFirstFailure } from "./kept.ts";
import type { Machine } from "./machine.ts";

/** What a connection master takes, with some output on its way. */
export const MASTER_MIB = 40;

/** What the master of a machine of a job is for: to listen at this socket, with such metrics. */
export function masterTask(
  { name, domain, metadata }: Machine,
  { socket, metricsFile }: Pick<MasterTask, "socket" | "metricsFile">,
): MasterTask {
  const { deadline, shell } = metadata;
  return {
    machine: name,
    domain,
    socket,
    deadline,
    metricsFile,
    keeps: isFirstFailure(metadata),
    shell: shell === "sh" ? "sh" : "bash",
  };
}
