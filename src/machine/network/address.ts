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

interface AddressOptions {
  readonly mac: string;
  readonly network: string;
  readonly hostAddresses: readonly string[];
  readonly card: Card | null;
  readonly connection: Connection;
  readonly watch: () => Promise<void>;
}

/**
 * Waits for the IP address of the machine's card. It comes from the network's leases, the guest agent or
 * the host's ARP table, by the card's MAC address, since a guest may claim any host name. The agent and the
 * ARP table say what the guest wants, so only an address that a guest of the network may have counts.
 * `hostAddresses` are those in the settings. `watch` throws what no waiting mends. Throws SystemFailure if
 * the machine ends, or at the timeout.
 *
 * It also waits if the address is known by a `card`: until the guest has it, packets are lost.
 */
export function waitForAddress(
  domain: Domain,
  { mac, network, hostAddresses, card, connection, watch }: AddressOptions,
  limits: Limits,
): Promise<string> {
  const findLeased = async (): Promise<string | null> => {
    if (card === null) return preferred(await addressesOf(domain, mac, ADDRESS_SOURCE.LEASE));
    // The network answers even while libvirt locks the domain to set its filter.
    const leased = await leasedAddress(connection, network, card);
    if (leased !== null && leased !== card.address) throw notItsOwn(network, leased, card);
    return leased;
  };
  const unusable = (address: string): NotYet =>
    new NotYet(
      `its address is ${address}, but its network filter allows only ${card?.address}, ` +
        "which the network reserved for it",
    );
  // For networks without leases. Asking is slow, and libvirt logs an error if no agent runs.
  let nextOtherSources = performance.now() + OTHER_SOURCES_MS;
  let reason = new NotYet(NO_LEASE);
  return waitFor({
    fault: "address",
    goal: `get an IP address in the network "${network}"`,
    awaited: "an IP address",
    advice: `Check the network: ${virsh(connection, "net-info", network)}, ` +
      `${
        virsh(connection, "net-dhcp-leases", network)
      }; check that the template starts its network with DHCP`,
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
        return reason = new NotYet("no DHCP lease, guest agent or ARP entry yet");
      }
      if (card === null) return address;
      return reason = address === card.address ? new NotYet(NO_LEASE) : unusable(address);
    },
  }, limits);
}

/** The address by the guest agent or the ARP table. `among` chooses those that count. */
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
      `The network "${network}" gave the machine the address ${leased}, but its network filter ` +
      `allows only ${address}, which the network reserved for it`,
    advice:
      "Retry the job to get another address, if GitLab Runner does not retry it. Another client " +
      "uses the reserved address, or an earlier guest declined it",
  });
}

/** Throws SystemFailure with this cause if the machine has ended; the cause itself if that is unknown. */
export async function refuseEnded(domain: Domain, cause?: unknown): Promise<void> {
  const state = await domain.state().catch((error) => {
    throw cause ?? error;
  });
  if (state !== "active") throw endedFailure(domain.name, state, cause);
}

/** The failure of a machine that has ended. */
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
          "Check the kernel's messages at the end of the serial console, and fix the cause in the " +
          "job or the template",
      };
    case "halted":
      return {
        fault: "storage",
        what: `The machine "${machine}" is halted: the host could not write to its disk`,
        advice:
          `Free space in the storage pool of "pools.overlays", or check ${log} for another cause; raise ` +
          `"host.reserve_disk_gib" so that no machine starts without enough space`,
      };
    case "gone":
      return {
        fault: "guest_ended",
        what: `The machine "${machine}" ended: it powered off, crashed or was destroyed`,
        advice: `Check ${log} for the cause, and retry the job`,
      };
  }
}

/** The card's addresses by this source. */
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

/** The addresses that a guest of the network may have. */
async function guestsAmong(
  addresses: readonly string[],
  { network: name, hostAddresses: named }: { network: string; hostAddresses: readonly string[] },
  connection: Connection,
): Promise<string[]> {
  if (addresses.length === 0) return [];
  using network = await Network.lookup(connection, name);
  const networkXml = await network.xml();
  const host = readHostNetwork();
  const { addresses: own, others } = hostAddresses(host, named);
  // Only the interfaces have IPv6 addresses.
  const ofHost = [...host.interfaces, ...own.map((address) => ({ address })), ...others];
  return addresses.filter((address) => mayBeGuests(address, { networkXml, ofHost }));
}

/** The first IPv4 address, else the first IPv6 address that is not link-local (RFC 4291, fe80::/10). */
function preferred(addresses: readonly string[]): string | null {
  const usable = addresses.filter((address) => !/^fe[89ab]/i.test(address));
  return usable.find((address) => address.includes(".")) ?? usable[0] ?? null;
}
