// SPDX-License-Identifier: GPL-2.0-or-later
import type { Env } from "../job/job.ts";

/** The only argument of the program where it is a connection master, which only prepare starts. */
export const MASTER_ARGUMENT = "connection-master";

const KEPT_VARIABLES = /^(HOME|PATH|SSH_AUTH_SOCK|XDG_\w+|DENO_\w+)$/;

/** The variables of the program in the background: none of the job's, which may be secret. */
export function keptVariables(env: Env): Record<string, string> {
  const kept = Object.entries(env).filter(([name]) => KEPT_VARIABLES.test(name));
  return Object.fromEntries(kept) as Record<string, string>;
}

/** glibc, as mallopt(3) has it, gives back what the output of scripts took: half of what a master has then. */
const GIVE_BACK = {
  MALLOC_ARENA_MAX: "1",
  MALLOC_MMAP_THRESHOLD_: "16384",
  MALLOC_TRIM_THRESHOLD_: "65536",
};

/** The variables of a connection master. */
export function masterVariables(env: Env): Record<string, string> {
  return { ...keptVariables(env), ...GIVE_BACK };
}
