// SPDX-License-Identifier: GPL-2.0-or-later
import { readProc } from "../../ffi/proc.ts";
import { type Cidr, cidrText, firstOf, lastOf, readCidrs } from "../ipv4.ts";

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
  readonly routes: readonly Route[];
}

/** Asks the kernel. */
export function readHostNetwork(): HostNetwork {
  return {
    interfaces: Deno.networkInterfaces(),
    routes: readRoutes(readProc("net/fib_trie") ?? ""),
  };
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
 * The IPv4 addresses of the host that we run on. A packet to the last address of any of its networks is
 * for the host, as a broadcast; for kernels before 5.14 so is one to the first. The kernel's own routes
 * tell of broadcast addresses that somebody chose, and of whole networks that are local.
 */
export function hostAddresses({ interfaces, routes }: HostNetwork): HostAddresses {
  const own = readCidrs(interfaces.map(({ cidr }) => cidr)); // which leaves out those of IPv6
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
