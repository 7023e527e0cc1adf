// SPDX-License-Identifier: GPL-2.0-or-later
import { type Cidr, covers } from "../../ipv4.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { isLibvirtError, orNull, VIR_ERR } from "../../libvirt/error.ts";
import { NetworkFilter } from "../../libvirt/network_filter.ts";
import { failureOf } from "../context.ts";
import type { Subnet } from "./network_info.ts";
import { childrenOf, find, rootOf } from "../../read_xml.ts";
import { retry } from "../../wait.ts";
import { attributesXml, Xml, xml } from "../../xml.ts";

/** What an isolated machine may reach. */
export interface Isolation {
  /** The IPv4 ranges of the machine's network. */
  readonly subnets: readonly Subnet[];
  /** The host's other IPv4 addresses. */
  readonly hostAddresses: readonly string[];
  /** Other closed ranges, such as broadcast addresses of the host's networks. */
  readonly closed: readonly Cidr[];
  /** Open ports of the host, such as `tcp/80`. */
  readonly hostPorts: readonly string[];
  /** The port of the guest's SSH server. */
  readonly sshPort: number;
  /** The filter's UUID, which marks a card as taken; null is a random one. */
  readonly uuid: string | null;
}

/** The name of a machine's network filter. */
export function filterName(machine: string): string {
  return `libvirt-gci-${machine}`;
}

/**
 * Creates the network filter of an isolated machine. Resolves to false if another filter has its UUID.
 * Throws SystemFailure.
 *
 * prepare creates the filter before the domain. libvirt keeps it by the machine's name, also if the host
 * reboots. The domain's card refers to it from the start, or from {@linkcode setFilter} on; only then is
 * the machine isolated, and only then a job gets it. libvirt refuses to remove it while a domain uses it,
 * so cleanup removes it after the domain. gc finds a filter that is left by its name.
 */
export async function createFilter(
  connection: Connection,
  machine: string,
  isolation: Isolation,
): Promise<boolean> {
  const name = filterName(machine);
  try {
    using _ = await NetworkFilter.define(connection, name, filterXml(name, isolation).toString());
    return true;
  } catch (cause) {
    if (isolation.uuid !== null && isLibvirtError(cause, VIR_ERR.OPERATION_FAILED)) return false;
    throw failureOf(cause, `created the network filter of the machine "${machine}"`, {
      fault: "network",
      what: `Cannot isolate the machine "${machine}": libvirt refuses its network filter`,
      advice:
        "Install libvirt's driver for network filters (the package libvirt-daemon-driver-nwfilter, " +
        "if there is one), or set network.isolate to false: jobs then reach the host and each other",
    });
  }
}

/** Removes the machine's filter, after its domain. Resolves to whether there was one. */
export async function removeFilter(connection: Connection, machine: string): Promise<boolean> {
  using filter = await NetworkFilter.find(connection, filterName(machine));
  if (filter === null) return false;
  // libvirt's thread that watches the guest's DHCP releases it a little after the domain.
  const isTransient = (error: unknown) => isLibvirtError(error, VIR_ERR.OPERATION_INVALID);
  const removed = retry(() => filter.undefine(), { tries: 20, isTransient });
  return await orNull(VIR_ERR.NO_NWFILTER, removed.then(() => true)) ?? false; // another cleanup was faster
}

const SENDER = -710;
const SERVICES = -706;
const HOST = -705;
const NEIGHBOURS = -704;
/** For connection tracking, which sees packets that passed all rules above. */
const TRACKED = 400;

const TO_ANY_DHCP_SERVER = { dstipaddr: "255.255.255.255", ...toPort("udp/67") };

const FROM_A_DHCP_SERVER = {
  dstipaddr: "255.255.255.255",
  protocol: "udp",
  srcportstart: 67,
  dstportstart: 68,
};

const ALWAYS_CLOSED: readonly Cidr[] = [
  { address: "127.0.0.0", prefix: 8 }, // reachable with the sysctl route_localnet of kube-proxy
  { address: "224.0.0.0", prefix: 3 }, // multicast and broadcast
];

/**
 * The filter as XML (https://libvirt.org/formatnwfilter.html). It binds the machine to its MAC address and
 * its IP address, in IP and ARP, and drops everything but IPv4. libvirt's clean-traffic does so too, but
 * with a chain for each protocol, and libvirt starts 8 processes to create a chain. From the machine:
 *
 * - to the host, only DNS, DHCP, the open ports, and the SSH server's answers to a client's port. If the
 *   kernel tracks bridged connections (net.bridge.bridge-nf-call-iptables), only the host can begin one.
 * - to closed addresses, such as those of the host's broadcasts, nothing.
 * - to and from the network's other addresses, nothing: the host would route packets between machines, past
 *   the isolation of the bridge's ports.
 *
 * To the machine, only frames for its MAC address: a bridge sends frames of an unknown address to all ports.
 */
export function filterXml(name: string, isolation: Isolation): Xml {
  const { subnets, hostAddresses, hostPorts, sshPort, uuid } = isolation;
  const gateways = subnets.map(({ host }) => host);
  const host = [...new Set([...gateways, ...hostAddresses])];
  const closed = [
    ...ALWAYS_CLOSED,
    ...isolation.closed,
    ...hostAddresses.map((address) => ({ address, prefix: 32 })),
  ];
  const rules = [
    rule("drop", SENDER, ["mac", { match: "no", srcmacaddr: "$MAC" }]),
    rule("drop", SENDER, ["arp", { match: "no", arpsrcmacaddr: "$MAC" }]),
    rule("drop", SENDER, ["arp", { match: "no", arpsrcipaddr: "$IP" }]),
    rule("accept", SENDER + 1, ["arp", {}], "inout"),
    rule("drop", SENDER + 2, ["mac", { match: "no", protocolid: "ipv4" }], "inout"),
    // From 0.0.0.0, or from the address of a guest that renews its lease.
    rule("accept", SENDER + 2, ["ip", TO_ANY_DHCP_SERVER]),
    rule("drop", SENDER + 3, ["ip", { match: "no", srcipaddr: "$IP" }]),
    rule("accept", SENDER + 2, ["ip", FROM_A_DHCP_SERVER], "in"),
    rule("drop", SENDER + 3, ["mac", { match: "no", dstmacaddr: "$MAC" }], "in"),
    ...gateways.flatMap((address) => [
      rule("accept", SERVICES, ["ip", { dstipaddr: address, ...toPort("udp/53") }]),
      rule("accept", SERVICES, ["ip", { dstipaddr: address, ...toPort("tcp/53") }]),
      rule("accept", SERVICES, ["ip", { dstipaddr: address, ...toPort("udp/67") }]),
      rule("accept", SERVICES, ["ip", { srcipaddr: address }], "in"),
    ]),
    ...host.flatMap((address) => [
      ...hostPorts.map((port) =>
        rule("accept", SERVICES, ["ip", { dstipaddr: address, ...toPort(port) }])
      ),
      rule("accept", SERVICES, ["ip", { dstipaddr: address, ...answerFrom(sshPort) }]),
    ]),
    ...withoutCovered(closed, subnets).map(({ address, prefix }) =>
      rule("drop", HOST, ["ip", { dstipaddr: address, dstipmask: prefix }])
    ),
    ...subnets.flatMap(({ host, prefix }) => [
      rule("drop", NEIGHBOURS, ["ip", { dstipaddr: host, dstipmask: prefix }]),
      rule("drop", NEIGHBOURS, ["ip", { srcipaddr: host, srcipmask: prefix }], "in"),
    ]),
    rule("drop", TRACKED, ["tcp", { srcportstart: sshPort, state: "NEW" }]),
  ];
  return xml`
    <filter name="${name}" chain="root">
      ${uuid !== null && xml`
        <uuid>${uuid}</uuid>
      `}
      ${rules}
    </filter>
  `;
}

/** The ranges that no other range or subnet covers, because each rule takes time. */
function withoutCovered(closed: readonly Cidr[], subnets: readonly Subnet[]): Cidr[] {
  const own = subnets.map(({ host, prefix }) => ({ address: host, prefix }));
  return closed.filter((cidr, i) =>
    ![...own, ...closed.slice(0, i)].some((other) => covers(other, cidr)) &&
    !closed.slice(i + 1).some((other) => other.prefix < cidr.prefix && covers(other, cidr))
  );
}

type Match = readonly [
  protocol: "mac" | "arp" | "ip" | "tcp",
  attributes: Readonly<Record<string, string | number>>,
];

function rule(
  action: "accept" | "drop",
  priority: number,
  [protocol, attributes]: Match,
  direction: "in" | "out" | "inout" = "out",
): Xml {
  const element = new Xml(protocol);
  return xml`
    <rule action="${action}" direction="${direction}" priority="${priority}">
      <${element}${attributesXml(attributes)} />
    </rule>
  `;
}

function toPort(port: string): { readonly protocol: string; readonly dstportstart: string } {
  const [protocol = "", dstportstart = ""] = port.split("/");
  return { protocol, dstportstart };
}

/** Clients' ports begin at 32768 (ip(7), ip_local_port_range). */
function answerFrom(sshPort: number): Match[1] {
  return { protocol: "tcp", srcportstart: sshPort, dstportstart: 32768, dstportend: 65535 };
}

/** The host's devices of a running domain's cards. */
export function cardDevices(domainXml: string): string[] {
  return childrenOf(find(rootOf(domainXml), "devices"), "interface")
    .map((card) => find(card, "target")?.attributes["dev"] ?? "")
    .filter((device) => /^[\w.-]+$/.test(device) && !/^\.+$/.test(device));
}
