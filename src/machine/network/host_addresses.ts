// SPDX-License-Identifier: GPL-2.0-or-later
import { readProc } from "../../../ffi/proc.ts";
import { type Cidr, cidrText, firstOf, lastOf, readCidrs } from "../../ipv4.ts";
import { type Bridge, findBridge, readSubnets, type Subnet } from "./network_info.ts";

/** A route of the kernel's, such as to an address of its own (LOCAL). */
export interface Route extends Cidr {
  readonly type: string;
}

/** What the kernel says of the network that we run in. */
export interface HostNetwork {
  readonly interfaces: readonly Pick<
    Deno.NetworkInterfaceInfo,
    "name" | "address" | "cidr" | "mac"
  >[];
  /** The names of all interfaces, also of those without an address. */
  readonly devices: readonly string[];
  readonly routes: readonly Route[];
  /** Whether the system booted with it; others have some addresses of their own, as in a container. */
  readonly isInitial: boolean;
}

/** Asks the kernel. */
export function readHostNetwork(): HostNetwork {
  return {
    interfaces: Deno.networkInterfaces(),
    devices: [...(readProc("net/dev") ?? "").matchAll(/^ *([^\s:]+):/gm)].map(([, name = ""]) =>
      name
    ),
    routes: readRoutes(readProc("net/fib_trie") ?? ""),
    // The kernel shows this bound, which is one for all networks, in the first of them alone.
    isInitial: readProc("sys/net/ipv4/tcp_mem") !== null,
  };
}

/**
 * Why the addresses of the host that machines of a libvirt network meet cannot be seen from here; null if
 * they can. libvirt itself may be elsewhere: its bridge tells.
 */
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

/** Reads the routes from the text of /proc/net/fib_trie, each once. */
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

/** A line with an address, or one with a prefix, a scope and a type, which is of the address before. */
const ROUTE = /^ *\|-- (\S+)|^ *\/(\d+) \S+ ([A-Z]+)/gm;

/** The addresses at which a host listens, but for those of loopback. */
export interface HostAddresses {
  /** Its own. */
  readonly addresses: readonly string[];
  /** Others: the broadcast and the network address of each of its networks, and what is routed to it. */
  readonly others: readonly Cidr[];
}

/**
 * The IPv4 addresses of the host that we run on, and those that the settings name. A packet to the last
 * address of any of its networks is for the host, as a broadcast. For kernels before 5.14 so is one to the
 * first. The kernel's own routes tell of broadcast addresses that somebody chose, and of whole networks
 * that are local.
 */
export function hostAddresses(
  { interfaces, routes }: Pick<HostNetwork, "interfaces" | "routes">,
  named: readonly string[],
): HostAddresses {
  // Those of IPv6 are left out.
  const own = readCidrs([...interfaces.map(({ cidr }) => cidr), ...named]);
  const local = routes.filter(({ type }) => type === "LOCAL");
  const addresses = [...own, ...local.filter(({ prefix }) => prefix === 32)]
    .map(({ address }) => address);
  const others = [
    ...own.filter(({ prefix }) => prefix < 31)
      .flatMap((cidr) => [firstOf(cidr), lastOf(cidr)].map(single)),
    ...local.filter(({ prefix }) => prefix < 32),
    ...routes.filter(({ type }) => type === "BROADCAST"),
  ];
  return {
    addresses: [...new Set(addresses)].filter((address) => !isLoopback(address)).sort(),
    others: [...new Map(others.map((cidr) => [cidrText(cidr), cidr])).values()]
      .filter(({ address }) => !isLoopback(address)),
  };
}

function single(address: string): Cidr {
  return { address, prefix: 32 };
}

function isLoopback(address: string): boolean {
  return address.startsWith("127.");
}
