// SPDX-License-Identifier: GPL-2.0-or-later
import { childrenOf, find, rootOf, textAt } from "../read_xml.ts";

/**
 * What libvirt confines machines by, of its capabilities: such as "apparmor", and "dac", which is by users
 * and groups. QEMU's driver always has one at least.
 */
export function securityModels(capabilitiesXml: string): string[] {
  return childrenOf(find(rootOf(capabilitiesXml), "host"), "secmodel")
    .map((model) => textAt(model, "model") ?? "");
}
