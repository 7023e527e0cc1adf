// SPDX-License-Identifier: GPL-2.0-or-later
import { isIP } from "node:net";
import { type Failure, SystemFailure } from "../../errors.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { ADDRESS_SOURCE, type Domain, type DomainState } from "../../libvirt/domain.ts";
import { LibvirtError } from "../../libvirt/error.ts";
import { Network } from "../../libvirt/network.ts";
import { type Card, leasedAddress } from "./card.ts";
import { hostAddresses, readHostNetwork } from "./host_addresses.ts";
import { mayBeGuests } from "./network_info.ts";
import { virsh } from "../../shell.ts";
import { type Limits, NotYet, waitFor } from "../../wait.ts";

const OTHER_SOURCES_MS = 2000;
const NO_LEASE = "no DHCP lease for its card";

/** Whose address to wait for. */
export interface AddressOptions {
  readonly mac: string;
  readonly network: string;
  /** Those of the host that the settings name. */
  readonly hostAddresses: readonly string[];
  readonly card: Card | null;
  readonly connection: Connection;
  /** Asked meanwhile: throws what no waiting mends. */
  readonly watch: () => Promise<void>;
}

/**
 * The address at which the host reaches the machine's card: from the network's leases, else from the
 * guest agent, else from the host's ARP table. All go by the card's MAC address: a host name is what
 * the guest claims. What the agent and the ARP table say is the guest's word too, and is believed of an
 * address that a guest of the network may have. Throws SystemFailure if the machine ends or the time is
 * over.
 *
 * Also where it is known before, by a `card`: the guest must have it, or what is sent to it is lost, and
 * the next is sent a second later.
 */
export function waitForAddress(
  domain: Domain,
  { mac, network, hostAddresses, card, connection, watch }: AddressOptions,
  limits: Limits,
): Promise<string> {
  const findLeased = async (): Promise<string | null> => {
    if (card === null) return preferred(await addressesOf(domain, mac, ADDRESS_SOURCE.LEASE));
    // The network tells, also while libvirt has the domain locked to set its filter.
    const leased = await leasedAddress(connection, network, card);
    if (leased !== null && leased !== card.address) throw notItsOwn(network, leased, card);
    return leased;
  };
  const unusable = (address: string): NotYet =>
    new NotYet(
      `its address is ${address}, and the network keeps ${card?.address} for it: ` +
        "its network filter lets nothing else through",
    );
  // The agent and the ARP table serve networks without leases; asking them is slow, and libvirt
  // logs an error each time that no agent runs.
  let nextOtherSources = performance.now() + OTHER_SOURCES_MS;
  let reason = new NotYet(NO_LEASE);
  return waitFor({
    fault: "address",
    goal: `get an address in the network "${network}"`,
    awaited: "an address",
    advice: `Look at the network: ${virsh(connection, "net-info", network)}, ` +
      `${
        virsh(connection, "net-dhcp-leases", network)
      }; and have the template start its network with DHCP`,
    probe: async () => {
      const leased = await findLeased();
      if (leased !== null) return leased;
      await watch();
      if (performance.now() < nextOtherSources) return reason;
      nextOtherSources = performance.now() + OTHER_SOURCES_MS;
      const isGuests = (said: readonly string[]) =>
        guestsAmong(said, { network, hostAddresses }, connection);
      const address = await otherAddress(domain, mac, card === null ? isGuests : null);
      if (address === null) {
        return reason = new NotYet(`${NO_LEASE}, no guest agent and no ARP entry that knows it`);
      }
      if (card === null) return address;
      return reason = address === card.address ? new NotYet(NO_LEASE) : unusable(address);
    },
  }, limits);
}

/** The address that the guest agent, else the ARP table says; `among` tells which are believed. */
async function otherAddress(
  domain: Domain,
  mac: string,
  among: ((said: readonly string[]) => Promise<string[]>) | null,
): Promise<string | null> {
  for (const source of [ADDRESS_SOURCE.AGENT, ADDRESS_SOURCE.ARP]) {
    const said = await addressesOf(domain, mac, source);
    const address = preferred(among === null ? said : await among(said));
    if (address !== null) return address;
  }
  return null;
}

function notItsOwn(network: string, leased: string, { address }: Card): SystemFailure {
  return new SystemFailure({
    fault: "address",
    what:
      `The network "${network}" gave the machine the address ${leased}, and not ${address}, which ` +
      "it keeps for it: its network filter lets nothing else through",
    advice:
      "Run the job again, which GitLab Runner does by itself, for another address. Somebody else " +
      "has this one, or an earlier guest declined it, for which the network keeps it back for a while",
  });
}

/**
 * Throws SystemFailure if the machine has ended: what is asked of it will not come. `cause` is what
 * failed before, and is thrown itself if libvirt does not say either what has become of the machine.
 */
export async function refuseEnded(domain: Domain, cause?: unknown): Promise<void> {
  const state = await domain.state().catch((error) => {
    throw cause ?? error;
  });
  if (state !== "active") throw endedFailure(domain.name, state, cause);
}

/** The failure of what needs a machine that is no more. */
export function endedFailure(
  machine: string,
  state: Exclude<DomainState, "active">,
  cause?: unknown,
): SystemFailure {
  return new SystemFailure({ ...endOf(machine, state), cause });
}

function endOf(machine: string, state: Exclude<DomainState, "active">): Failure {
  const log = `/var/log/libvirt/qemu/${machine}.log on the host`;
  switch (state) {
    case "crashed":
      return {
        fault: "guest_ended",
        what: `The machine "${machine}" crashed: its kernel panicked`,
        advice:
          "See what its kernel says at the end of its serial console, and have the job, or the " +
          "template, avoid that",
      };
    case "halted":
      return {
        fault: "storage",
        what: `The machine "${machine}" is halted: the host could not write to its disk`,
        advice:
          `Free space in the host's pool of machines' disks ("pools.overlays"), or see another ` +
          `reason in ${log}; a larger "host.reserve_disk_gib" in the settings keeps machines from starting ` +
          "without space",
      };
    case "gone":
      return {
        fault: "guest_ended",
        what: `The machine "${machine}" ended: it powered off, crashed, or somebody destroyed it`,
        advice: `See why in ${log}, and run the job again`,
      };
  }
}

/** What the source says of the card, as far as these are addresses. */
async function addressesOf(
  domain: Domain,
  mac: string,
  source: typeof ADDRESS_SOURCE[keyof typeof ADDRESS_SOURCE],
): Promise<string[]> {
  try {
    const interfaces = await domain.interfaceAddresses(source);
    return interfaces.filter((card) => card.mac === mac).flatMap(({ addresses }) => addresses)
      .filter((address) => isIP(address) !== 0);
  } catch (error) {
    if (!(error instanceof LibvirtError)) throw error;
    await refuseEnded(domain, error);
    return []; // a network without leases, or a guest without an agent
  }
}

/** Those that a guest of the network may have. */
async function guestsAmong(
  addresses: readonly string[],
  { network: name, hostAddresses: named }: {
    readonly network: string;
    readonly hostAddresses: readonly string[];
  },
  connection: Connection,
): Promise<string[]> {
  if (addresses.length === 0) return [];
  using network = await Network.lookup(connection, name);
  const networkXml = await network.xml();
  const host = readHostNetwork();
  const { addresses: own, others } = hostAddresses(host, named);
  // IPv6 is among those of the interfaces alone.
  const ofHost = [...host.interfaces, ...own.map((address) => ({ address })), ...others];
  return addresses.filter((address) => mayBeGuests(address, { networkXml, ofHost }));
}

/** IPv4 before IPv6, and no address that is only good on one link (RFC 4291, fe80::/10). */
function preferred(addresses: readonly string[]): string | null {
  const usable = addresses.filter((address) => !/^fe[89ab]/i.test(address));
  return usable.find((address) => address.includes(".")) ?? usable[0] ?? null;
}
