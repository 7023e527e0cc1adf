// SPDX-License-Identifier: GPL-2.0-or-later
import { within } from "../wait.ts";
import type { Check, DoctorContext } from "./check.ts";
import { checkDaemon, checkEmulator } from "./daemon.ts";
import { type Finding, problem } from "./finding.ts";
import { checkSwap, checkThreads } from "./hardening.ts";
import {
  checkBridgeTracking,
  checkCapability,
  checkFilterPrograms,
  checkFilters,
  checkFirewall,
} from "./filters.ts";
import { checkKeys } from "./keys.ts";
import { checkEmulation, checkKvm, checkKvmDevice, checkNested } from "./kvm.ts";
import { checkNetworks } from "./networks.ts";
import { checkOverlayPool, checkTemplatePool } from "./storage.ts";
import { explain } from "../errors.ts";
import { checkReach } from "./reachable.ts";
import { checkRunner } from "./runner.ts";
import { checkSecurityModules } from "./security_modules.ts";
import { checkSettings } from "./settings_check.ts";
import { checkTemplates } from "./templates.ts";
import { checkWarmImages } from "./warm_check.ts";

/** A finding, and what it is about. */
export interface GroupedFinding extends Finding {
  readonly group: string;
}

/** Checks by group, in the order in which a host is set up. */
const GROUPS: Readonly<Record<string, readonly Check[]>> = {
  "settings": [checkSettings],
  "libvirt": [checkDaemon, checkEmulator],
  "KVM": [checkEmulation, checkKvm, checkKvmDevice, checkNested],
  "storage": [checkTemplatePool, checkOverlayPool],
  "network": [checkNetworks],
  "isolation": [
    checkFilters,
    checkCapability,
    checkBridgeTracking,
    checkFilterPrograms,
    checkFirewall,
    checkReach,
  ],
  "templates": [checkTemplates, checkWarmImages],
  "SSH keys": [checkKeys],
  "security modules": [checkSecurityModules],
  "hardening": [checkThreads, checkSwap],
  "GitLab Runner": [checkRunner],
};

/** Looks at all that jobs need of this host. It never throws. */
export async function doctor(context: DoctorContext): Promise<GroupedFinding[]> {
  const groups = Object.entries(GROUPS).map(([group, checks]) => examine(group, checks, context));
  return (await Promise.all(groups)).flat();
}

/** What these checks find. One that fails, or takes too long, keeps no other from its findings. */
export async function examine(
  group: string,
  checks: readonly Check[],
  context: DoctorContext,
): Promise<GroupedFinding[]> {
  const findings = checks.map(async (check): Promise<Finding[]> => {
    try {
      const found = await within(check(context), context.checkSeconds * 1000);
      return found ?? [unfinished(group, `no answer within ${context.checkSeconds} s`)];
    } catch (error) {
      return [unfinished(group, explain(error))];
    }
  });
  return (await Promise.all(findings)).flat().map((finding) => ({ group, ...finding }));
}

function unfinished(group: string, reason: string): Finding {
  return problem(`A check of ${group} did not come to an end`, {
    meaning: `${reason}\nWhat it would have found is unknown`,
  });
}
