// SPDX-License-Identifier: GPL-2.0-or-later
import type { Config } from "../config.ts";
import { templatesToWait } from "../template_choice.ts";

/**
 * The arguments with which the program has machines wait in place of what a job took; null where the
 * settings want none. `file` is that of the settings, as the command line names it.
 */
export function refillArguments(
  config: Config,
  { file }: { readonly file: string | undefined },
): readonly string[] | null {
  if (templatesToWait(config).length === 0) return null;
  return [...(file === undefined ? [] : ["--config", file]), "standby"];
}
