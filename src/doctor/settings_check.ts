// SPDX-License-Identifier: GPL-2.0-or-later
import { explain } from "../errors.ts";
import type { DoctorContext } from "./check.ts";
import { type Finding, ok, problem } from "./finding.ts";

/** The settings file, as each stage reads it. */
export function checkSettings({ configError, config }: DoctorContext): Promise<Finding[]> {
  if (configError !== null) {
    return Promise.resolve([
      problem("The settings cannot be used", {
        meaning: `${explain(configError)}\nEach stage of each job fails. ` +
          "What follows is for the default settings",
      }),
    ]);
  }
  const { file, templates: { size } } = config;
  const templates = `they name ${size} template${size === 1 ? "" : "s"}`;
  return Promise.resolve([
    ok(
      file === null
        ? "There is no file with settings: the defaults hold"
        : `The settings in "${file}" have no mistake; ${templates}`,
    ),
  ]);
}
