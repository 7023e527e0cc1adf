// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../../errors.ts";
import { readCidrs } from "../../ipv4.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { Network } from "../../libvirt/network.ts";
import type { MachineDomain } from "../domain_xml.ts";
import { takeCard } from "./card.ts";
import { createFilter, filterName, removeFilter } from "./filter.ts";
import { hostAddresses, readHostNetwork, whyUnseen } from "./host_addresses.ts";
import { readSubnets, type Subnet } from "./network_info.ts";
import type { MachineSettings } from "../../settings/settings.ts";
import { virsh } from "../../shell.ts";

/**
 * The IPv4 ranges of the settings' network. Throws SystemFailure if the network does not exist or is not
 * active, or if machines are to be isolated and the host's addresses are unknown.
 */
export async function requireNetwork(
  connection: Connection,
  { network: { name, isolate, hostAddresses } }: Pick<MachineSettings, "network">,
): Promise<Subnet[]> {
  if (name === "none") {
    if (connection.isLocal) return [];
    throw new SystemFailure({
      fault: "network",
      what: "A machine without a network can be reached only from the host where it runs",
      advice: 'Set "network.name" to a network of that host, or run libvirt-gci there',
    });
  }
  using network = await Network.find(connection, name);
  if (network !== null && await network.isActive()) {
    const xml = await network.xml();
    if (isolate && hostAddresses.length === 0) requireSight(xml, name, connection);
    return readSubnets(xml);
  }
  throw new SystemFailure({
    fault: "network",
    what: network === null
      ? `The host has no network "${name}"`
      : `The network "${name}" is not active`,
    advice: network === null
      ? `Set "network.name" to a network of the host: ${virsh(connection, "net-list", "--all")}`
      : `Start it: ${virsh(connection, "net-start", name)} && ` +
        virsh(connection, "net-autostart", name),
  });
}

/** Throws SystemFailure if the host's addresses cannot be seen from here. */
function requireSight(networkXml: string, name: string, { isLocal }: Connection): void {
  const reason = whyUnseen(networkXml, { isLocal, host: readHostNetwork() });
  if (reason === null) return;
  throw new SystemFailure({
    fault: "settings",
    what: `Cannot isolate machines of the network "${name}": ${reason}, so libvirt-gci does ` +
      "not know the addresses of their host",
    advice:
      'Set "network.host_addresses" to the IPv4 addresses of that host, as ip -4 address shows them ' +
      'there, such as [192.0.2.7/24], or set "network.isolate" to false: jobs then reach the host and ' +
      "each other",
  });
}

/**
 * Creates the network filter of a machine, and takes a card for it. Both are null if the settings do not
 * isolate; the card is null if the network cannot reserve addresses.
 */
export async function isolate(
  machine: string,
  { settings, subnets }: {
    readonly settings: MachineSettings;
    readonly subnets: readonly Subnet[];
  },
  connection: Connection,
): Promise<Pick<MachineDomain, "filter" | "card">> {
  if (!settings.network.isolate || settings.network.name === "none") {
    return { filter: null, card: null };
  }
  // The addresses of this host are closed even if the hypervisor is on another.
  const { addresses, others } = hostAddresses(readHostNetwork(), settings.network.hostAddresses);
  const isolation = {
    subnets,
    hostAddresses: addresses,
    closed: [...others, ...readCidrs(settings.network.blocked)],
    hostPorts: settings.network.hostPorts,
    sshPort: settings.ssh.port,
  };
  await removeFilter(connection, machine); // a leftover filter has another card
  const filter = filterName(machine);
  const card = await takeCard(
    connection,
    settings.network.name,
    (_, uuid) => createFilter(connection, machine, { ...isolation, uuid }),
  );
  if (card === null) await createFilter(connection, machine, { ...isolation, uuid: null });
  return { filter, card };
}
