// SPDX-License-Identifier: GPL-2.0-or-later
import { childrenOf, find, rootOf, textAt } from "../read_xml.ts";

/** How libvirt confines machines, by its capabilities: such as "apparmor", or "dac" for users and groups. */
export function securityModels(capabilitiesXml: string): string[] {
  return childrenOf(find(rootOf(capabilitiesXml), "host"), "secmodel")
    .map((model) => textAt(model, "model") ?? "");
}
