// SPDX-License-Identifier: GPL-2.0-or-later
import type { DoctorContext } from "./context.ts";
import { type Finding, ok, problem } from "./finding.ts";
import { adviceOf, reasonOf } from "./reason.ts";

/** The settings file, as each stage reads it. */
export function checkSettings({ configError, config }: DoctorContext): Promise<Finding[]> {
  if (configError !== null) {
    return Promise.resolve([
      problem("The settings cannot be used", {
        meaning: `${reasonOf(configError)}\nEach stage of each job fails. ` +
          "What follows is for the default settings",
        remedy: adviceOf(configError),
      }),
    ]);
  }
  const { size } = config.templates;
  return Promise.resolve([
    ok(`The settings have no mistake; they name ${size} template${size === 1 ? "" : "s"}`),
  ]);
}
