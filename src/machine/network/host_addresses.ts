// SPDX-License-Identifier: GPL-2.0-or-later
import { readProc } from "../../../ffi/proc.ts";
import { type Cidr, cidrText, firstOf, lastOf, readCidrs } from "../../ipv4.ts";
import { type Bridge, findBridge, readSubnets, type Subnet } from "./network_info.ts";

/** A route of the kernel. Its own addresses have the type LOCAL. */
export interface Route extends Cidr {
  readonly type: string;
}

/** The network namespace of this process. */
export interface HostNetwork {
  readonly interfaces: readonly Pick<
    Deno.NetworkInterfaceInfo,
    "name" | "address" | "cidr" | "mac"
  >[];
  /** The names of all interfaces, also without an address. */
  readonly devices: readonly string[];
  readonly routes: readonly Route[];
  /** Whether it is the host's first namespace, not that of a container. */
  readonly isInitial: boolean;
}

/** Reads it from the kernel. */
export function readHostNetwork(): HostNetwork {
  const devices = (readProc("net/dev") ?? "").matchAll(/^ *([^\s:]+):/gm);
  return {
    interfaces: Deno.networkInterfaces(),
    devices: Array.from(devices, ([, name = ""]) => name),
    routes: readRoutes(readProc("net/fib_trie") ?? ""),
    isInitial: readProc("sys/net/ipv4/tcp_mem") !== null, // only the first one shows it
  };
}

/** Why the addresses of the libvirt network's host cannot be seen from here; null if they can. */
export function whyUnseen(
  networkXml: string,
  { isLocal, host }: { readonly isLocal: boolean; readonly host: HostNetwork },
): string | null {
  if (!isLocal) return "the hypervisor is on another host";
  const bridge = findBridge(networkXml);
  if (bridge === null || !isAmong(host, bridge, readSubnets(networkXml))) {
    return `${
      bridge ? `its bridge "${bridge.name}"` : "a bridge"
    } is not among the interfaces here, ` +
      "as in a container";
  }
  return host.isInitial ? null : "libvirt-gci runs in a container with a network of its own";
}

function isAmong(
  { devices, interfaces }: HostNetwork,
  bridge: Bridge,
  subnets: readonly Subnet[],
): boolean {
  if (subnets.length === 0) return devices.includes(bridge.name);
  return interfaces.some(({ name, address, mac }) =>
    name === bridge.name && subnets.some(({ host }) => host === address) &&
    (bridge.mac === null || bridge.mac === mac)
  );
}

/** The routes in the text of /proc/net/fib_trie, each once. */
export function readRoutes(fibTrie: string): Route[] {
  const routes = new Map<string, Route>();
  let address = "";
  for (const [, leaf, prefix, type = ""] of fibTrie.matchAll(ROUTE)) {
    address = leaf ?? address;
    if (leaf === undefined) {
      routes.set(`${address}/${prefix} ${type}`, { address, prefix: Number(prefix), type });
    }
  }
  return [...routes.values()];
}

/** A line with an address, or a line with a prefix, scope and type of the address before. */
const ROUTE = /^ *\|-- (\S+)|^ *\/(\d+) \S+ ([A-Z]+)/gm;

/**
 * The IPv4 addresses of this host and those `named` in the settings, and `others` at which it takes
 * packets, without loopback. A host takes broadcasts at the last address of each of its networks and,
 * before Linux 5.14, at the first. Its routes have other broadcast addresses and whole local networks.
 */
export function hostAddresses(
  { interfaces, routes }: Pick<HostNetwork, "interfaces" | "routes">,
  named: readonly string[],
): { readonly addresses: readonly string[]; readonly others: readonly Cidr[] } {
  const own = readCidrs([...interfaces.map(({ cidr }) => cidr), ...named]); // IPv4 only
  const local = routes.filter(({ type }) => type === "LOCAL");
  const addresses = [...own, ...local.filter(({ prefix }) => prefix === 32)]
    .map(({ address }) => address);
  const others = [
    ...own.filter(({ prefix }) => prefix < 31).flatMap((cidr) => [firstOf(cidr), lastOf(cidr)])
      .map((address) => ({ address, prefix: 32 })),
    ...local.filter(({ prefix }) => prefix < 32),
    ...routes.filter(({ type }) => type === "BROADCAST"),
  ];
  return {
    addresses: [...new Set(addresses)].filter((address) => !isLoopback(address)).sort(),
    others: [...new Map(others.map((cidr) => [cidrText(cidr), cidr])).values()]
      .filter(({ address }) => !isLoopback(address)),
  };
}

function isLoopback(address: string): boolean {
  return address.startsWith("127.");
}
