// SPDX-License-Identifier: GPL-2.0-or-later
import { flushConnections } from "../../../ffi/conntrack.ts";
import { SystemFailure } from "../../errors.ts";
import { addressOf } from "../../ipv4.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { isLibvirtError, LibvirtError, orNull, VIR_ERR } from "../../libvirt/error.ts";
import { type DhcpLease, Network } from "../../libvirt/network.ts";
import { NetworkFilter } from "../../libvirt/network_filter.ts";
import { failureOf } from "../context.ts";
import { type Dhcp, findDhcp } from "./network_info.ts";
import { sha256 } from "../../sha256.ts";
import { virsh } from "../../shell.ts";
import { xml } from "../../xml.ts";

/** A MAC address of QEMU's range, which libvirt uses too. */
export function randomMac(): string {
  const [a, b, c] = crypto.getRandomValues(new Uint8Array(3));
  return [0x52, 0x54, 0x00, a, b, c].map((byte) => (byte ?? 0).toString(16).padStart(2, "0"))
    .join(":");
}

/** A network card whose IP address is known before the guest asks for it. */
export interface Card {
  readonly mac: string;
  readonly address: string;
  /** The end of an earlier machine's lease, in seconds since 1970; null is none. */
  readonly leasedUntil: number | null;
}

/** Creates the card's network filter with this UUID. Resolves to whether it did. */
type TakeCard = (card: Card, uuid: string) => Promise<boolean>;

const ATTEMPTS = 20;

/** Each interrupts other machines' connections, and stays until the network ends. */
const MOST_NEW_ENTRIES = 10;

/**
 * A free card of the network. `take` takes it by creating a network filter with the card's UUID, of which
 * libvirt allows only one. The card is free again when the filter is removed.
 *
 * The network's DHCP server reserves each card's address by an entry in the live network. A new entry
 * interrupts other machines' connections ({@linkcode Network.addDhcpHost}), so entries stay for later
 * machines until the network ends.
 *
 * Null if addresses cannot be reserved: libvirt does not serve the network, or does not permit it. Throws
 * SystemFailure, also if no address is free.
 */
export async function takeCard(
  connection: Connection,
  networkName: string,
  take: TakeCard,
): Promise<Card | null> {
  try {
    using network = await Network.lookup(connection, networkName);
    return await tryTake(connection, network, take);
  } catch (cause) {
    if (!(cause instanceof LibvirtError)) throw cause;
    throw failureOf(cause, `reserved an address in the network "${networkName}"`, {
      fault: "network",
      what: `Cannot reserve an address in the network "${networkName}"`,
      advice: `Check the network: ${virsh(connection, "net-dumpxml", networkName)}`,
    });
  }
}

async function tryTake(
  connection: Connection,
  network: Network,
  take: TakeCard,
): Promise<Card | null> {
  for (let attempt = 1, added = 0;; attempt++) {
    const dhcp = findDhcp(await network.xml());
    if (dhcp === null) return null;
    const leases = await leasesOf(network);
    const filters = await NetworkFilter.list(connection) ?? [];
    const taken = new Set(filters.map(({ uuid }) => uuid));
    for (const { mac, ip } of dhcp.hosts.filter(({ id }) => id === OURS)) {
      const uuid = await uuidOf(network.name, mac);
      const own = leases.filter((lease) => lease.mac === mac);
      // A lease of another address means that a guest declined the card's.
      if (taken.has(uuid) || own.some(({ address }) => address !== ip)) continue;
      const card = { mac, address: ip, leasedUntil: own[0]?.until ?? null };
      if (await take(card, uuid)) {
        // Else answers to an earlier machine's packets would pass the host's NAT.
        if (connection.isLocal) flushConnections(ip);
        return card;
      }
    }
    if (added === MOST_NEW_ENTRIES) throw allTaken(network.name);
    const address = chooseFree(dhcp, leases);
    if (address === null) throw exhausted(connection, network.name);
    try {
      const host = xml`
        <host mac="${randomMac()}" id="${OURS}" ip="${address}" />
      `;
      await network.addDhcpHost(host.toString(), dhcp.ipIndex);
      added++;
    } catch (error) {
      if (isLibvirtError(error, VIR_ERR.NO_SUPPORT, VIR_ERR.ACCESS_DENIED)) return null;
      // Another process took this address.
      if (!isLibvirtError(error, VIR_ERR.OPERATION_INVALID) || attempt === ATTEMPTS) throw error;
    }
  }
}

/** The address that the guest has leased for the card, or null. */
export async function leasedAddress(
  connection: Connection,
  networkName: string,
  { mac, address, leasedUntil }: Card,
): Promise<string | null> {
  using network = await Network.lookup(connection, networkName);
  const lease = (await leasesOf(network)).find((lease) =>
    lease.mac === mac &&
    // An earlier machine's lease does not count, unless leases never end.
    (lease.address !== address || lease.until !== leasedUntil || lease.until === 0)
  );
  return lease?.address ?? null;
}

/** The card with the lease that an earlier guest may have got meanwhile. */
export async function withCurrentLease(
  connection: Connection,
  networkName: string,
  card: Card,
): Promise<Card> {
  using network = await Network.lookup(connection, networkName);
  const lease = (await leasesOf(network)).find(({ mac }) => mac === card.mac);
  return { ...card, leasedUntil: lease?.until ?? null };
}

async function leasesOf(network: Network): Promise<readonly DhcpLease[]> {
  const leases = await orNull(VIR_ERR.NO_SUPPORT, network.dhcpLeases()); // the test driver has none
  return (leases ?? []).filter(({ address }) => !address.includes(":")); // IPv4 only
}

/**
 * The `id` of our entries: `libvirt-gci` in hexadecimal. libvirt passes an id to the DHCP server only for
 * DHCPv6. A `name` would replace the guest's own in the network's DNS.
 */
const OURS = new TextEncoder().encode("libvirt-gci").toHex();

/** The UUID of a card. */
async function uuidOf(network: string, mac: string): Promise<string> {
  const hex = await sha256(`libvirt-gci ${mac} ${network}`);
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12}).*/, "$1-$2-$3-$4-$5");
}

/** A random free address of the ranges. */
function chooseFree({ ranges, host, hosts }: Dhcp, leases: readonly DhcpLease[]): string | null {
  const used = [...hosts.map(({ ip }) => ip), ...leases.map(({ address }) => address)];
  const taken = new Set([host, ...used]);
  const size = ranges.reduce((sum, { first, last }) => sum + last - first + 1, 0);
  const start = Math.floor(Math.random() * size);
  for (let i = 0; i < size; i++) {
    const address = addressAt(ranges, (start + i) % size);
    // Old systems take these for network or broadcast addresses; the DHCP server skips them.
    if (!/\.(0|255)$/.test(address) && !taken.has(address)) return address;
  }
  return null;
}

function addressAt(ranges: Dhcp["ranges"], index: number): string {
  let rest = index;
  for (const { first, last } of ranges) {
    if (rest <= last - first) return addressOf(first + rest);
    rest -= last - first + 1;
  }
  return "";
}

function allTaken(network: string): SystemFailure {
  return new SystemFailure({
    fault: "network",
    what: `Other clients took all reserved addresses of the network "${network}"`,
    advice: "Retry the job when fewer machines start at once",
  });
}

function exhausted(connection: Connection, network: string): SystemFailure {
  return new SystemFailure({
    fault: "network",
    what: `The network "${network}" has no free address`,
    advice: `List its leases: ${virsh(connection, "net-dhcp-leases", network)}; widen its range, ` +
      `or shorten its leases: ${virsh(connection, "net-edit", network)}`,
  });
}
