// SPDX-License-Identifier: GPL-2.0-or-later
import type { XmlElement } from "@rgrove/parse-xml";
import { allMachines, type DoctorContext } from "./check.ts";
import { type Finding, type Found, ok, problem, warning } from "./finding.ts";
import { type Dhcp, readDhcp } from "../machine/network/network_info.ts";
import { childrenOf, find, rootOf } from "../read_xml.ts";
import { virsh } from "../shell.ts";

/** Kinds of networks whose bridge and addresses are not libvirt's. */
const FOREIGN = ["bridge", "private", "vepa", "passthrough", "hostdev"];
const FEWEST_ADDRESSES = 16;
const FEWEST_MACHINES_PER_HOUR = 20;
const SHORTEST_DELAY = 2; // The kernel takes no less with STP (BR_MIN_FORWARD_DELAY).

interface NetworkContext extends Pick<DoctorContext, "config"> {
  readonly name: string;
}

/** The findings in a network's XML (https://libvirt.org/formatnetwork.html). */
export function networkFindings(networkXml: string, context: NetworkContext): Found {
  const { name } = context;
  const root = rootOf(networkXml);
  if (FOREIGN.includes(find(root, "forward")?.attributes["mode"] ?? "")) {
    return warning(`libvirt does not serve addresses in the network "${name}"`, {
      meaning: "Machines there are found only by their guest agent or the host's ARP table, and " +
        '"network.isolate" cannot block their neighbours and their gateway',
    });
  }
  const dhcp = readDhcp(root);
  return [
    checkBridge(root, context),
    dhcp === null ? noDhcp(context) : [checkRanges(dhcp, context), checkPing(root, context)],
  ];
}

/** A spanning tree holds back each port of a bridge while it listens, and again while it learns. */
function checkBridge(root: XmlElement | null, context: NetworkContext): Finding | null {
  const { stp = "on", delay = "0" } = find(root, "bridge")?.attributes ?? {};
  if (stp === "off") return null; // the kernel then ignores the delay
  const seconds = 2 * Math.max(SHORTEST_DELAY, Number(delay));
  return warning(`The bridge of the network "${context.name}" uses STP`, {
    meaning: `Each machine waits ${seconds} s until it can use the network`,
    remedy: edit(context, "in <bridge>, set stp='off' delay='0'"),
  });
}

function noDhcp(context: NetworkContext): Finding {
  return problem(`The network "${context.name}" has no DHCP`, {
    meaning: 'Machines get no address, and their jobs fail after "timeouts.address_seconds"',
    remedy: edit(
      context,
      "in <ip>, add <dhcp><range start='192.168.122.2' end='192.168.122.254'/></dhcp>, with " +
        "addresses of that <ip>",
    ),
  });
}

/** Whether all machines in the network are isolated, and so reuse its addresses. */
function areKept({ config, name }: NetworkContext): boolean {
  return allMachines(config).every(({ network }) => network.name !== name || network.isolate);
}

/** A machine that is not isolated has its own MAC address, and so always takes a new lease. */
function checkRanges({ ranges }: Dhcp, context: NetworkContext): Finding {
  const { name } = context;
  const isReused = areKept(context);
  const size = ranges.reduce((sum, { first, last }) => sum + last - first + 1, 0);
  const hours = Math.max(...ranges.map(({ leaseHours }) => leaseHours));
  const perHour = size / hours;
  const lease = Number.isFinite(hours) ? `leased for ${hoursWords(hours)}` : "leased forever";
  const subject = `The network "${name}" has ${size} addresses, ${lease}`;
  const range = "widen <range start='…' end='…'>, or add <lease expiry='10' unit='minutes'/> to it";
  if (size >= FEWEST_ADDRESSES && (isReused || perHour >= FEWEST_MACHINES_PER_HOUR)) {
    return ok(subject);
  }
  return warning(subject, {
    meaning: isReused
      ? `With more than ${size} machines at once, jobs fail because there are no addresses left`
      : `After ${size} machines in that time, the next gets no address and its job fails, ` +
        "because leases outlive their machines",
    remedy: edit(context, range),
  });
}

/** The server pings no address that the network keeps. */
function checkPing(root: XmlElement | null, context: NetworkContext): Finding | null {
  if (areKept(context)) return null;
  const options = childrenOf(find(root, "dnsmasq:options"), "dnsmasq:option");
  if (options.some(({ attributes }) => attributes["value"] === "no-ping")) return null;
  return warning(`The DHCP server of the network "${context.name}" pings addresses first`, {
    meaning: "Each machine that is not isolated waits up to 3 s for its address",
    remedy: edit(
      context,
      "in <network>, set xmlns:dnsmasq='http://libvirt.org/schemas/network/dnsmasq/1.0', and " +
        "before </network> add <dnsmasq:options><dnsmasq:option value='no-ping'/></dnsmasq:options>",
    ),
  });
}

/** Changes take effect at the network's next start, which disconnects its machines. */
function edit({ config, name }: NetworkContext, what: string): string {
  const restart = `${virsh(config.libvirt, "net-destroy", name)} && ${
    virsh(config.libvirt, "net-start", name)
  }`;
  return `${virsh(config.libvirt, "net-edit", name)} # ${what}\n${restart} # while no machine runs`;
}

function hoursWords(hours: number): string {
  return hours >= 2 ? `${Math.round(hours)} h` : `${Math.round(hours * 60)} min`;
}
