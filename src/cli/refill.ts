// SPDX-License-Identifier: GPL-2.0-or-later
import { templatesToWait } from "../policy/template_choice.ts";
import type { Config } from "../settings/settings.ts";

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
