// SPDX-License-Identifier: GPL-2.0-or-later
import { allMachines, isLocal, type LibvirtContext } from "./check.ts";
import { type Finding, type Found, ok, problem, warning } from "./finding.ts";
import { type Cidr, cidrText, covers, readCidrs } from "../ipv4.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Network } from "../libvirt/network.ts";
import { hostAddresses, whyUnseen } from "../machine/network/host_addresses.ts";
import { readSubnets } from "../machine/network/network_info.ts";
import type { MachineSettings } from "../settings/settings.ts";

const METADATA: Cidr = { address: "169.254.169.254", prefix: 32 };
const PRIVATE = readCidrs(["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]);

export async function checkReach(context: LibvirtContext): Promise<Found> {
  const machines = allMachines(context.config).filter(({ network }) => network.name !== "none");
  const networks = await xmlsOf(machines, context.connection);
  const isolated = machines.filter(({ network: { isolate } }) => isolate);
  const notIsolated = machines.length === isolated.length ? null : warning(
    "Machines without isolation can reach the host, each other and all networks",
    { meaning: '"network.isolate" is false, for all machines or for those of a template' },
  );
  if (isolated.length === 0) return notIsolated;
  const reach = { isolated, networks, context };
  return [
    notIsolated,
    unseen(reach),
    open(reach),
    metadata(isolated),
    isLocal(context) ? privateNetworks(reach) : null,
  ];
}

interface Reach {
  readonly isolated: readonly MachineSettings[];
  readonly networks: ReadonlyMap<string, string>;
  readonly context: LibvirtContext;
}

/** The XML of those of the machines' networks that exist, by name. */
async function xmlsOf(
  machines: readonly MachineSettings[],
  connection: Connection,
): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for (const name of new Set(machines.map(({ network }) => network.name))) {
    using network = await Network.find(connection, name);
    if (network !== null) found.set(name, await network.xml());
  }
  return found;
}

function unseen({ isolated, networks, context }: Reach): Found {
  const unnamed = isolated.filter(({ network: { hostAddresses } }) => hostAddresses.length === 0);
  return unique(unnamed.map(({ network }) => network.name)).map((name) => {
    const xml = networks.get(name);
    if (xml === undefined) return null; // which is a finding of its own
    const reason = whyUnseen(xml, { isLocal: isLocal(context), host: context.hostNetwork() });
    if (reason === null) return null;
    return problem(
      `Cannot tell which addresses to block for machines in "${name}": ${reason}`,
      {
        meaning: "Jobs with an isolated machine cannot start. Name the addresses in " +
          '"network.host_addresses"',
        remedy: `ip -4 address # on the machines' host: put these into "network.host_addresses"`,
      },
    );
  });
}

function open({ isolated, networks, context: { hostNetwork } }: Reach): Finding {
  const ports = unique(isolated.flatMap(({ network: { hostPorts } }) => hostPorts));
  const services = "On the host, isolated machines can reach DHCP and DNS of their network";
  if (ports.length === 0) return ok(`${services}, and no other port`);
  const withPorts = isolated.filter(({ network: { hostPorts } }) => hostPorts.length > 0);
  const gateways = withPorts
    .flatMap(({ network }) => readSubnets(networks.get(network.name) ?? "<network/>"))
    .map(({ host }) => host);
  const named = withPorts.flatMap((machine) => machine.network.hostAddresses);
  const { addresses } = hostAddresses(hostNetwork(), named);
  const where = unique(gateways.concat(addresses)).join(", ");
  return ok(`${services}, and ${ports.join(", ")} ("network.host_ports") at ${where}`);
}

function metadata(isolated: readonly MachineSettings[]): Finding {
  if (isolated.every((machine) => isBlocked(METADATA, machine))) {
    return ok(`Isolated machines cannot reach ${METADATA.address}, the cloud's metadata service`);
  }
  return warning(`Isolated machines can reach ${METADATA.address}, the cloud's metadata service`, {
    meaning: "In a cloud, it gives the host's credentials to any client. Add 169.254.0.0/16 to " +
      '"network.blocked"',
  });
}

/** The private networks that the host has routes to. It has one to each network that it is in. */
function privateNetworks({ isolated, networks, context: { hostNetwork } }: Reach): Finding {
  const own = Array.from(networks.values()).flatMap(readSubnets)
    .map(({ host, prefix }) => ({ address: host, prefix }));
  const reached = hostNetwork().routes.filter((route) =>
    route.type === "UNICAST" && PRIVATE.some((network) => covers(network, route)) &&
    !own.some((network) => covers(network, route)) &&
    !isolated.every((machine) => isBlocked(route, machine))
  ).map(cidrText);
  if (reached.length === 0) {
    return ok("Isolated machines cannot reach the private networks that the host has routes to");
  }
  return warning(`Isolated machines can reach private networks: ${reached.join(", ")}`, {
    meaning: "Jobs can connect to all hosts there. If no job needs that, add these networks to " +
      '"network.blocked", next to 169.254.0.0/16',
  });
}

function isBlocked(network: Cidr, settings: MachineSettings): boolean {
  return readCidrs(settings.network.blocked).some((blocked) => covers(blocked, network));
}

function unique(texts: readonly string[]): string[] {
  return Array.from(new Set(texts));
}
