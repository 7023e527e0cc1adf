// SPDX-License-Identifier: GPL-2.0-or-later
import type { Job } from "../job/job.ts";
import { quoted } from "../quoted.ts";
import type { Stage } from "../machine/context.ts";

const MOST_NAMES = 10;

/** Says that nobody starts the job's `services:`, if it has any. */
export function warnOfServices({ services }: Job, { warn }: Stage): void {
  if (services.length === 0) return;
  const names = services.slice(0, MOST_NAMES).map(quoted).join(", ");
  const more = services.length > MOST_NAMES ? `, and ${services.length - MOST_NAMES} more` : "";
  warn(
    `This job's services are not started: ${names}${more}. libvirt-gci starts no containers: ` +
      "start what the job needs in its script, in the machine, or install it in the template",
  );
}
