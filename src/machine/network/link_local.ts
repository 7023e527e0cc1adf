// SPDX-License-Identifier: GPL-2.0-or-later
import { setGroupForwardMask } from "../../../ffi/bridge_port.ts";
import { readProc } from "../../../ffi/proc.ts";
import { isLocalUri } from "../../libvirt/connection.ts";
import type { Domain } from "../../libvirt/domain.ts";
import { childrenOf, find, rootOf } from "../../read_xml.ts";

/** All but 01:80:c2:00:00:01, the pause frames, which the bridge drops. */
const ALL_GROUPS = 0xfffd;

const CAP_NET_ADMIN = 12n; // linux/capability.h

/**
 * Has the bridge treat link-local frames of the machine's cards as all others, so that its filter drops
 * them. Otherwise the bridge hands frames to 01:80:c2:00:00:0X to the host's own IP stack, past every
 * filter, be it IPv6, and takes the guest's word for how the network's bridges are connected (STP).
 *
 * By `group_fwd_mask` of the card's port (https://docs.kernel.org/networking/bridge.html), which takes
 * the capability CAP_NET_ADMIN. The card has to be there. Does nothing where there is no such port, as
 * in Open vSwitch, or without the capability, of which doctor warns.
 */
export async function forwardLinkLocal(domain: Domain): Promise<void> {
  for (const device of cardDevices(await domain.xml())) setGroupForwardMask(device, ALL_GROUPS);
}

/** Whether it can: with the capability, on the hypervisor's host. */
export function mayForwardLinkLocal(uri: string): boolean {
  return isLocalUri(uri) && isNetworkAdmin(readProc("self/status") ?? "");
}

/** Whether a process has the capability CAP_NET_ADMIN, by its `/proc/PID/status`. */
export function isNetworkAdmin(status: string): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0";
  return (BigInt(`0x${effective}`) >> CAP_NET_ADMIN & 1n) === 1n;
}

/** The devices on the host that are the cards of a running domain. */
export function cardDevices(domainXml: string): string[] {
  return childrenOf(find(rootOf(domainXml), "devices"), "interface")
    .map((card) => find(card, "target")?.attributes["dev"] ?? "")
    .filter((device) => /^[\w.-]+$/.test(device) && !/^\.+$/.test(device));
}
