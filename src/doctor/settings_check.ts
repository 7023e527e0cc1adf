// SPDX-License-Identifier: GPL-2.0-or-later
import type { DoctorContext } from "./check.ts";
import { type Finding, ok, problem } from "./finding.ts";
import { explain } from "../errors.ts";

export const group = { name: "settings", checks: [checkSettings] };

export function checkSettings({ configError, config }: DoctorContext): Finding {
  if (configError !== null) {
    return problem("The settings cannot be used", {
      meaning: `${explain(configError)}\nEvery job fails. ` +
        "The checks below use the default settings",
    });
  }
  const { file, templates: { size } } = config;
  if (file === null) return ok("No settings file: using the defaults");
  const templates = `${size} template${size === 1 ? "" : "s"}`;
  return ok(`The settings in "${file}" are valid and name ${templates}`);
}
