// SPDX-License-Identifier: GPL-2.0-or-later
import type { Env } from "../job/job.ts";
import { templatesToWait } from "../policy/template_choice.ts";
import type { Config } from "../settings/settings.ts";

const KEPT_VARIABLES = /^(HOME|PATH|SSH_AUTH_SOCK|XDG_\w+|DENO_\w+)$/;

/** The variables of that program: none of the job's, which may be secret. */
export function keptVariables(env: Env): Record<string, string> {
  const kept = Object.entries(env).filter(([name]) => KEPT_VARIABLES.test(name));
  return Object.fromEntries(kept) as Record<string, string>;
}

/**
 * The arguments with which the program has machines wait in place of what a job took; null where the
 * settings want none. `file` is that of the settings, as the command line names it, in the directory
 * `cwd`: the program may run in another.
 */
export function refillArguments(
  config: Config,
  { file, cwd }: { readonly file: string | undefined; readonly cwd: () => string },
): readonly string[] | null {
  if (templatesToWait(config).length === 0) return null;
  if (file === undefined) return ["standby"];
  return ["--config", file.startsWith("/") ? file : `${cwd()}/${file}`, "standby"];
}
