// SPDX-License-Identifier: GPL-2.0-or-later
import { flushConnections } from "../../../ffi/conntrack.ts";
import { SystemFailure } from "../../errors.ts";
import { addressOf } from "../../ipv4.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { isLibvirtError, LibvirtError, orNull, VIR_ERR } from "../../libvirt/error.ts";
import { type DhcpLease, Network } from "../../libvirt/network.ts";
import { NetworkFilter } from "../../libvirt/network_filter.ts";
import { throwIfLost } from "../context.ts";
import { type Dhcp, findDhcp } from "./network_info.ts";
import { sha256 } from "../../sha256.ts";
import { virsh } from "../../shell.ts";
import { xml } from "../../xml.ts";

/** A network card's address of QEMU's own range (52:54:00), which libvirt uses too. */
export function randomMac(): string {
  const [a, b, c] = crypto.getRandomValues(new Uint8Array(3));
  return [0x52, 0x54, 0x00, a, b, c].map((byte) => (byte ?? 0).toString(16).padStart(2, "0"))
    .join(":");
}

/** A network card whose address is known before its guest asks for it. */
export interface Card {
  readonly mac: string;
  readonly address: string;
  /** Until when an earlier machine has leased it, in seconds since 1970; null is not at all. */
  readonly leasedUntil: number | null;
}

/** Tries to have a card for one machine alone. Resolves to whether it has it now. */
export type TakeCard = (card: Card, uuid: string) => Promise<boolean>;

const ATTEMPTS = 20;

/** Each costs others connections, and stays until the network ends. */
const MOST_NEW_ENTRIES = 10;

/**
 * A card of the network that no machine has, for a machine that `take` gives it to: by a network filter
 * with the card's UUID, of which libvirt lets there be but one, so that the card is free again when the
 * filter is deleted.
 *
 * The network keeps each card's address for it, by an entry of its DHCP server in the live network. A
 * further entry costs others connections ({@linkcode Network.addDhcpHost}), so entries stay for later
 * machines until the network ends: there are as many as there were machines at once.
 *
 * Null where nobody can keep addresses: libvirt does not serve the network, or does not let us. Throws
 * SystemFailure, also if no address is free, or if others take each that is new.
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
    throwIfLost(cause, `reserved an address in the network "${networkName}"`);
    throw new SystemFailure({
      fault: "network",
      what: `Cannot reserve an address in the network "${networkName}"`,
      cause,
      advice: `Look at the network: ${virsh(connection, "net-dumpxml", networkName)}`,
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
      // With another address, the DHCP server does not give out the card's own: a guest declined it.
      if (taken.has(uuid) || own.some(({ address }) => address !== ip)) continue;
      const card = { mac, address: ip, leasedUntil: own[0]?.until ?? null };
      if (await take(card, uuid)) {
        // An answer to what an earlier machine sent would pass the host's NAT, to whoever has its address.
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
      // Somebody else was faster with this address.
      if (!isLibvirtError(error, VIR_ERR.OPERATION_INVALID) || attempt === ATTEMPTS) throw error;
    }
  }
}

/** The address that the machine's guest has leased for the card; null as long as it has none. */
export async function leasedAddress(
  connection: Connection,
  networkName: string,
  { mac, address, leasedUntil }: Card,
): Promise<string | null> {
  using network = await Network.lookup(connection, networkName);
  const lease = (await leasesOf(network)).find((lease) =>
    lease.mac === mac &&
    // What an earlier machine has leased does not tell, unless it is for ever.
    (lease.address !== address || lease.until !== leasedUntil || lease.until === 0)
  );
  return lease?.address ?? null;
}

/** The card, for another guest than the one that may have leased its address meanwhile. */
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
  return (leases ?? []).filter(({ address }) => !address.includes(":")); // of IPv4 alone
}

/**
 * The `id` of entries that are ours: `libvirt-gci` in hexadecimal. libvirt keeps it with the entry, and
 * gives it to the DHCP server only where it is the name of a DHCPv6 client. A `name` would be one in the
 * network's DNS, in place of the guest's own.
 */
const OURS = new TextEncoder().encode("libvirt-gci").toHex();

/** A UUID for the card of this address in this network. */
async function uuidOf(network: string, mac: string): Promise<string> {
  const hex = await sha256(`libvirt-gci ${mac} ${network}`);
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12}).*/, "$1-$2-$3-$4-$5");
}

/** An address of the ranges that nobody has, by chance. */
function chooseFree({ ranges, host, hosts }: Dhcp, leases: readonly DhcpLease[]): string | null {
  const used = [...hosts.map(({ ip }) => ip), ...leases.map(({ address }) => address)];
  const taken = new Set([host, ...used]);
  const size = ranges.reduce((sum, { first, last }) => sum + last - first + 1, 0);
  const start = Math.floor(Math.random() * size);
  for (let i = 0; i < size; i++) {
    const address = addressAt(ranges, (start + i) % size);
    // Old systems take these for a network's own, or for all; the DHCP server gives them to nobody.
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
    advice: "Try again when fewer machines start at once",
  });
}

function exhausted(connection: Connection, network: string): SystemFailure {
  return new SystemFailure({
    fault: "network",
    what: `The network "${network}" has no free address`,
    advice:
      `See who has them: ${virsh(connection, "net-dhcp-leases", network)}; widen its range, ` +
      `or shorten its leases: ${virsh(connection, "net-edit", network)}`,
  });
}
