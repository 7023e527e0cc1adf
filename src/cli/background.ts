// SPDX-License-Identifier: GPL-2.0-or-later
import type { Env } from "../job/job.ts";

/** The argument that makes the program a connection master. Only prepare starts it so. */
export const MASTER_ARGUMENT = "connection-master";

const KEPT_VARIABLES = /^(HOME|PATH|SSH_AUTH_SOCK|XDG_\w+|DENO_\w+)$/;

/**
 * The environment of the program in the background, without the job's variables, which may be secret.
 */
export function keptVariables(env: Env): Record<string, string> {
  const kept = Object.entries(env).filter(([name]) => KEPT_VARIABLES.test(name));
  return Object.fromEntries(kept) as Record<string, string>;
}

/**
 * Makes glibc return the memory that the output of scripts took (mallopt(3)), half of a master's.
 */
const GIVE_BACK = {
  MALLOC_ARENA_MAX: "1",
  MALLOC_MMAP_THRESHOLD_: "16384",
  MALLOC_TRIM_THRESHOLD_: "65536",
};

/** The variables of a connection master. */
export function masterVariables(env: Env): Record<string, string> {
  return { ...keptVariables(env), ...GIVE_BACK };
}
