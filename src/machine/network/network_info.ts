// SPDX-License-Identifier: GPL-2.0-or-later
import type { XmlElement } from "@rgrove/parse-xml";
import { BlockList, isIPv4, isIPv6 } from "node:net";
import { addressNumber } from "../../ipv4.ts";
import { childrenOf, find, rootOf } from "../../read_xml.ts";

/** An IPv4 range of a network. */
export interface Subnet {
  /** The host's address: the guests' gateway, DHCP and DNS server. */
  readonly host: string;
  /** In bits. */
  readonly prefix: number;
}

/**
 * The IPv4 ranges that libvirt serves in a network, by its XML
 * (https://libvirt.org/formatnetwork.html#addressing); none if the network uses another's bridge.
 */
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

/** The bridge of a network. libvirt may not know its MAC address. */
export interface Bridge {
  readonly name: string;
  readonly mac: string | null;
}

/** The bridge by a network's XML, or null. */
export function findBridge(networkXml: string): Bridge | null {
  const root = rootOf(networkXml);
  const name = find(root, "bridge")?.attributes["name"];
  return name === undefined
    ? null
    : { name, mac: find(root, "mac")?.attributes["address"] ?? null };
}

/** Ranges without guests: loopback, link-local, multicast, and IPv4 within IPv6. */
const OF_NO_GUEST = new BlockList();
addRange(OF_NO_GUEST, "0.0.0.0", 8);
addRange(OF_NO_GUEST, "127.0.0.0", 8);
addRange(OF_NO_GUEST, "169.254.0.0", 16);
addRange(OF_NO_GUEST, "224.0.0.0", 3);
addRange(OF_NO_GUEST, "::", 8);
addRange(OF_NO_GUEST, "fe80::", 10);
addRange(OF_NO_GUEST, "ff00::", 8);

/** Whether a guest may have this address: one of the network's ranges, if it has any, and not the host's. */
export function mayBeGuests(
  address: string,
  { networkXml, ofHost }: {
    readonly networkXml: string;
    readonly ofHost: readonly { readonly address: string; readonly prefix?: number }[];
  },
): boolean {
  const family = familyOf(address);
  if (family === null || OF_NO_GUEST.check(address, family)) return false;
  const hosts = new BlockList();
  const ranges = new BlockList();
  for (const { address, prefix } of ofHost) addRange(hosts, address, prefix);
  const served = childrenOf(rootOf(networkXml), "ip").map(({ attributes }) => attributes);
  for (const { address: host = "", netmask, prefix } of served) {
    const length = prefix ?? (netmask === undefined ? undefined : prefixOf(netmask));
    addRange(ranges, host, Number(length ?? (isIPv4(host) ? 24 : 64)));
    addRange(hosts, host);
  }
  return !hosts.check(address, family) && (served.length === 0 || ranges.check(address, family));
}

/** Null if it is no address, or has a link's name. */
function familyOf(address: string): "ipv4" | "ipv6" | null {
  if (isIPv4(address)) return "ipv4";
  return isIPv6(address) && !address.includes("%") ? "ipv6" : null;
}

/** Adds a range or an address to a list. */
function addRange(list: BlockList, address: string, prefix?: number): void {
  const family = familyOf(address);
  if (family !== null) list.addSubnet(address, prefix ?? (family === "ipv4" ? 32 : 128), family);
}

/** Addresses for guests, as numbers. */
interface DhcpRange {
  readonly first: number;
  readonly last: number;
  /** Infinity is for ever. */
  readonly leaseHours: number;
}

/** A network's DHCP server for IPv4. */
export interface Dhcp {
  /** Its own address. */
  readonly host: string;
  /** The index of its `<ip>` in the network. */
  readonly ipIndex: number;
  readonly ranges: readonly DhcpRange[];
  /** The reserved addresses. */
  readonly hosts: readonly { readonly mac: string; readonly id: string; readonly ip: string }[];
}

/** The DHCP server by a network's XML, or null. libvirt allows one. */
export function findDhcp(networkXml: string): Dhcp | null {
  return readDhcp(rootOf(networkXml));
}

/** As {@linkcode findDhcp}, by the element `<network>`. */
export function readDhcp(network: XmlElement | null): Dhcp | null {
  for (const [ipIndex, ip] of childrenOf(network, "ip").entries()) {
    const dhcp = find(ip, "dhcp");
    const ranges = childrenOf(dhcp, "range").map(readRange);
    if ((ip.attributes["family"] ?? "ipv4") !== "ipv4" || ranges.length === 0) continue;
    const hosts = childrenOf(dhcp, "host").map((host) => {
      const { mac = "", id = "", ip = "" } = host.attributes;
      return { mac, id, ip };
    });
    return { host: ip.attributes["address"] ?? "", ipIndex, ranges, hosts };
  }
  return null;
}

function readRange(range: XmlElement): DhcpRange {
  const { start = "", end = "" } = range.attributes;
  // dnsmasq leases for an hour by default.
  const { expiry = "60", unit = "minutes" } = find(range, "lease")?.attributes ?? {};
  const perHour = unit === "hours" ? 1 : unit === "seconds" ? 3600 : 60;
  return {
    first: addressNumber(start),
    last: addressNumber(end),
    leaseHours: expiry === "0" ? Infinity : Number(expiry) / perHour,
  };
}

/** The MAC addresses of a domain's cards whose link is down in libvirt, by its XML. */
export function unpluggedCards(domainXml: string): string[] {
  return childrenOf(find(rootOf(domainXml), "devices"), "interface")
    .filter((card) => find(card, "link")?.attributes["state"] === "down")
    .map((card) => find(card, "mac")?.attributes["address"] ?? "");
}
