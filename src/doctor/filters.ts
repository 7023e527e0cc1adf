// SPDX-License-Identifier: GPL-2.0-or-later
import { NetworkFilter } from "../libvirt/network_filter.ts";
import { isNetworkAdmin } from "../machine/network/link_local.ts";
import { restartDaemons } from "../shell.ts";
import {
  allMachines,
  type DoctorContext,
  type Group,
  isConnected,
  type LibvirtContext,
  needsLibvirt,
  needsLocalHost,
} from "./check.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";
import { hasProgram, readHostFile, readIfAllowed, readLibvirtSetting } from "./host_files.ts";
import { readOwnUser } from "./host_users.ts";
import { install } from "./install.ts";
import { checkReach } from "./reachable.ts";

export const group: Group = {
  name: "isolation",
  checks: [
    needsLibvirt(checkFilters),
    needsLocalHost(checkCapability),
    needsLocalHost(checkBridgeTracking),
    needsLocalHost(checkFilterPrograms),
    needsLocalHost(checkFirewall),
    needsLibvirt(checkReach),
  ],
};

const FIRST_WITH_NFTABLES = 10_004_000;
/** In the sources. It goes to the same place below /etc/systemd/system. */
const DROP_IN = "systemd/gitlab-runner.service.d/libvirt-gci.conf";
const BRIDGED = "net.bridge.bridge-nf-call-iptables";

/** Whether libvirt has its driver for the filters that bind a machine to its addresses. */
export async function checkFilters(context: LibvirtContext): Promise<Finding | null> {
  if (!isolates(context)) return null;
  if (await NetworkFilter.list(context.connection) !== null) {
    return ok("libvirt can make network filters");
  }
  const packages = {
    debian: "libvirt-daemon-config-nwfilter",
    fedora: "libvirt-daemon-driver-nwfilter",
    arch: "libvirt",
  };
  const restart = restartDaemons("libvirtd", "virtnwfilterd");
  return problem("libvirt cannot make network filters", {
    meaning: "No job starts whose machine is to be isolated",
    remedy: `${await install(context, packages)} && ${restart}`,
  });
}

/** Whether the kernel tracks the connections of bridged machines. */
export async function checkBridgeTracking(context: DoctorContext): Promise<Finding | null> {
  if (!isolates(context)) return null;
  const value = await readHostFile(context, `/proc/sys/${BRIDGED.replaceAll(".", "/")}`);
  if (value?.trim() === "1") return ok("The kernel tracks the connections of machines");
  return warning(`The kernel does not track the connections of machines: ${BRIDGED} is not 1`, {
    meaning: "From the port of its SSH server, a guest may open connections to ports of the " +
      "host above 32767, although it is isolated",
    remedy: `modprobe br_netfilter && sysctl ${BRIDGED}=1 && ` +
      "echo br_netfilter > /etc/modules-load.d/libvirt-gci.conf && " +
      `echo ${BRIDGED}=1 > /etc/sysctl.d/90-libvirt-gci.conf`,
  });
}

/** What of isolation is not libvirt's, and takes a capability. */
export async function checkCapability(context: DoctorContext): Promise<Finding | null> {
  if (!isolates(context)) return null;
  if (isNetworkAdmin(await readHostFile(context, "/proc/self/status") ?? "")) {
    return ok("With CAP_NET_ADMIN, libvirt-gci does for isolated machines what libvirt does not");
  }
  const { name } = await readOwnUser(context);
  return warning(
    `${name} has not the capability CAP_NET_ADMIN, so libvirt alone isolates machines`,
    {
      meaning: "A guest can send link-local frames past its filter: UDP to services of the host, " +
        "IPv6 routes, STP where the network's bridge has it. And answers to connections of who " +
        "had its address before reach the next guest. Give GitLab Runner's unit the capability, " +
        `as ${DROP_IN} does`,
    },
  );
}

/** The programs by which libvirt makes the rules of filters. */
export async function checkFilterPrograms(context: DoctorContext): Promise<Finding | null> {
  if (!isolates(context)) return null;
  const programs = ["ebtables", "iptables"];
  const found = await Promise.all(programs.map((name) => hasProgram(context, name)));
  const missing = programs.filter((_, i) => !found[i]);
  if (missing.length === 0) return ok("libvirt has ebtables and iptables for its filters");
  const names = missing.join(" ");
  return problem(`The host has no ${missing.join(" and no ")}`, {
    meaning: "libvirt's filters need both: no job starts whose machine is to be isolated",
    remedy: await install(context, { debian: names, fedora: names, arch: "iptables-nft" }),
  });
}

/** What libvirt makes the rules of networks with: NAT, and what guests may reach. */
export async function checkFirewall(context: DoctorContext): Promise<Finding | null> {
  const text = await readIfAllowed(context, "/etc/libvirt/network.conf");
  const backend = readLibvirtSetting(text, "firewall_backend");
  if (backend === null) return isConnected(context) ? await defaultFirewall(context) : null;
  const program = backend === "nftables" ? "nft" : "iptables";
  if (await hasProgram(context, program)) {
    return ok(`libvirt makes the firewall rules of networks with ${backend}`);
  }
  const packages = program === "nft"
    ? { debian: "nftables", fedora: "nftables", arch: "nftables" }
    : { debian: "iptables", fedora: "iptables-nft", arch: "iptables-nft" };
  return problem(
    `libvirt is to make firewall rules with ${backend}, and the host has no ${program}`,
    { meaning: "No network starts, and so no job", remedy: await install(context, packages) },
  );
}

async function defaultFirewall({ connection }: LibvirtContext): Promise<Finding> {
  return await connection.libVersion() < FIRST_WITH_NFTABLES
    ? ok("libvirt makes the firewall rules of networks with iptables, as all before 10.4")
    : ok("libvirt itself chooses what makes the firewall rules of networks");
}

function isolates({ config }: DoctorContext): boolean {
  return allMachines(config).some(({ isolate, network }) => isolate && network !== "none");
}
