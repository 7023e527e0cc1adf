// SPDX-License-Identifier: GPL-2.0-or-later
import type { Network } from "../libvirt/network.ts";
import { childrenOf, rootOf } from "../read_xml.ts";

/** A range of IPv4 addresses that a network has, and the host's own in it. */
export interface Subnet {
  /** The host's address: the guests' gateway, DHCP and DNS server. */
  readonly host: string;
  /** The length of its prefix, in bits. */
  readonly prefix: number;
}

/** The IPv4 ranges that libvirt itself serves in a network; none where it joins another's bridge. */
export async function subnetsOf(network: Network): Promise<Subnet[]> {
  return readSubnets(await network.xml());
}

/** Reads them from a network's XML (https://libvirt.org/formatnetwork.html#addressing). */
export function readSubnets(networkXml: string): Subnet[] {
  return childrenOf(rootOf(networkXml), "ip")
    .filter(({ attributes }) => (attributes["family"] ?? "ipv4") === "ipv4")
    .map(({ attributes: { address = "", netmask, prefix } }) => ({
      host: address,
      prefix: Number(prefix ?? (netmask === undefined ? 24 : prefixOf(netmask))),
    }));
}

function prefixOf(netmask: string): number {
  const bits = netmask.split(".").map((byte) => Number(byte).toString(2)).join("");
  return bits.replaceAll("0", "").length;
}
