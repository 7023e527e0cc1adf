// SPDX-License-Identifier: GPL-2.0-or-later
import type { Check, DoctorContext } from "./check.ts";
import { group as libvirt } from "./daemon.ts";
import { group as isolation } from "./filters.ts";
import { type Finding, type Found, listFindings, problem } from "./finding.ts";
import { group as hardening } from "./hardening.ts";
import { group as keys } from "./keys.ts";
import { group as kvm } from "./kvm.ts";
import { group as network } from "./networks.ts";
import { group as runner } from "./runner.ts";
import { group as securityModules } from "./security_modules.ts";
import { group as settings } from "./settings_check.ts";
import { group as storage } from "./storage.ts";
import { group as templates } from "./templates.ts";
import { explain } from "../errors.ts";
import { within } from "../wait.ts";

export interface GroupedFinding extends Finding {
  readonly group: string;
}

/** Checks of one subject. The file that has them exports their group. */
interface Group {
  readonly name: string;
  readonly checks: readonly Check[];
}

/** All groups, in the order in which a host is set up. */
const GROUPS: readonly Group[] = [
  settings,
  libvirt,
  kvm,
  storage,
  network,
  isolation,
  templates,
  keys,
  securityModules,
  hardening,
  runner,
];

/** Looks at all that jobs need of this host. It never throws. */
export async function runChecks(context: DoctorContext): Promise<GroupedFinding[]> {
  return (await Promise.all(GROUPS.map((group) => examine(group, context)))).flat();
}

/**
 * The findings of these checks. A check that fails or takes too long does not affect the others.
 */
export async function examine(
  { name, checks }: Group,
  context: DoctorContext,
): Promise<GroupedFinding[]> {
  const found = checks.map(async (check): Promise<Found> => {
    const look = async (): Promise<Finding[]> => listFindings(await check(context));
    try {
      return await within(look(), context.checkSeconds * 1000) ??
        unfinished(name, `no answer within ${context.checkSeconds} s`);
    } catch (error) {
      return unfinished(name, explain(error));
    }
  });
  return listFindings(await Promise.all(found)).map((finding) => ({ group: name, ...finding }));
}

function unfinished(group: string, reason: string): Finding {
  return problem(`A check of ${group} did not finish`, {
    meaning: `${reason}\nIts results are missing`,
  });
}
