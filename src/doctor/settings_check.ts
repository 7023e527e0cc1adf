// SPDX-License-Identifier: GPL-2.0-or-later
import { explain } from "../errors.ts";
import type { DoctorContext, Group } from "./check.ts";
import { type Finding, ok, problem } from "./finding.ts";

export const group: Group = { name: "settings", checks: [checkSettings] };

/** The settings file, as each stage reads it. */
export function checkSettings({ configError, config }: DoctorContext): Finding {
  if (configError !== null) {
    return problem("The settings cannot be used", {
      meaning: `${explain(configError)}\nEach stage of each job fails. ` +
        "What follows is for the default settings",
    });
  }
  const { file, templates: { size } } = config;
  if (file === null) return ok("There is no file with settings: the defaults hold");
  const templates = `they name ${size} template${size === 1 ? "" : "s"}`;
  return ok(`The settings in "${file}" have no mistake; ${templates}`);
}
