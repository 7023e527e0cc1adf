// SPDX-License-Identifier: GPL-2.0-or-later
import { templatesToWait } from "../policy/template_choice.ts";
import type { Config } from "../settings/settings.ts";

/**
 * The arguments with which the program refills the standby machines; null if the settings want none.
 * `file` is the settings' file as the command line names it, relative to `cwd`: the program may run in
 * another directory.
 */
export function refillArguments(
  config: Config,
  { file, cwd }: { readonly file: string | undefined; readonly cwd: () => string },
): readonly string[] | null {
  if (templatesToWait(config).length === 0) return null;
  if (file === undefined) return ["standby"];
  return ["--config", file.startsWith("/") ? file : `${cwd()}/${file}`, "standby"];
}
