// SPDX-License-Identifier: GPL-2.0-or-later
import { BlockList, isIP } from "node:net";

/** Link-local addresses, and those where clouds tell their machines secrets. No image comes from there. */
const FORBIDDEN = blockList([
  "169.254.0.0/16",
  "fe80::/10",
  "64:ff9b::a9fe:0/112", // the last by NAT64
  "100.100.100.200/32",
  "192.0.0.192/32",
  "168.63.129.16/32", // Alibaba, Oracle, Azure
  "fd00:ec2::254/128",
  "fd20:ce::254/128",
  "fd00:42::42/128", // AWS, Google, Scaleway
]);

/** What a proxy may resolve to one of those. */
const FORBIDDEN_NAMES: readonly string[] = [
  "instance-data",
  "instance-data.ec2.internal",
  "metadata",
  "metadata.goog",
  "metadata.google.internal",
];

/** This host itself. The kernel takes the unspecified address for it too. */
const LOOPBACK = blockList(["127.0.0.0/8", "0.0.0.0/8", "::1/128", "::/128"]);

function blockList(networks: readonly string[]): BlockList {
  const list = new BlockList();
  for (const network of networks) {
    const [address = "", prefix = ""] = network.split("/");
    list.addSubnet(address, Number(prefix), address.includes(":") ? "ipv6" : "ipv4");
  }
  return list;
}

/** Whether the address is in the list, also as an IPv6 address that stands for one of IPv4. */
function isIn(list: BlockList, address: string): boolean {
  const [plain = ""] = address.split("%"); // without the interface
  const family = isIP(plain);
  return family !== 0 && list.check(plain, family === 6 ? "ipv6" : "ipv4");
}

/** Whether no request may go there. */
export function isForbiddenAddress(address: string): boolean {
  return isIn(FORBIDDEN, address);
}

export function isLoopback(address: string): boolean {
  return isIn(LOOPBACK, address);
}

/** A URL's host without the brackets and the last dot that it may have. */
export function hostOf({ hostname }: URL): string {
  return hostname.replace(/^\[|\]$/g, "").replace(/\.$/, "");
}

/** Whether the URL names by itself a place where no request may go, whatever a proxy makes of it. */
export function isForbiddenHost(url: URL): boolean {
  const host = hostOf(url);
  return isForbiddenAddress(host) || FORBIDDEN_NAMES.includes(host);
}

/** Whether the URL names this host by itself. */
export function isLoopbackHost(url: URL): boolean {
  const host = hostOf(url);
  return isLoopback(host) || host === "localhost" || host.endsWith(".localhost");
}
