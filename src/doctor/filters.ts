// SPDX-License-Identifier: GPL-2.0-or-later
import {
  allMachines,
  type DoctorContext,
  isConnected,
  type LibvirtContext,
  needsLibvirt,
  needsLocalHost,
} from "./check.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";
import { findSetting, hasProgram, install, readHostFile, readOwnUser } from "./host_files.ts";
import { checkReach } from "./reachable.ts";
import { NetworkFilter } from "../libvirt/network_filter.ts";
import { isNetworkAdmin } from "../machine/network/set_filter.ts";
import { restartDaemons } from "../shell.ts";

export const group = {
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

export async function checkFilters(context: LibvirtContext): Promise<Finding | null> {
  if (!isolates(context)) return null;
  if (await NetworkFilter.list(context.connection) !== null) {
    return ok("libvirt supports network filters");
  }
  const packages = {
    debian: "libvirt-daemon-config-nwfilter",
    fedora: "libvirt-daemon-driver-nwfilter",
    arch: "libvirt",
  };
  const restart = restartDaemons("libvirtd", "virtnwfilterd");
  return problem("libvirt does not support network filters", {
    meaning: "Jobs with an isolated machine cannot start",
    remedy: `${await install(context, packages)} && ${restart}`,
  });
}

export async function checkBridgeTracking(context: DoctorContext): Promise<Finding | null> {
  if (!isolates(context)) return null;
  const value = await readHostFile(context, `/proc/sys/${BRIDGED.replaceAll(".", "/")}`);
  if (value?.trim() === "1") return ok("The kernel tracks the connections of bridged machines");
  return warning(
    `The kernel does not track the connections of bridged machines: ${BRIDGED} is not 1`,
    {
      meaning: "From the port of its SSH server, an isolated guest can connect to ports of the " +
        "host above 32767",
      remedy: `modprobe br_netfilter && sysctl ${BRIDGED}=1 && ` +
        "echo br_netfilter > /etc/modules-load.d/libvirt-gci.conf && " +
        `echo ${BRIDGED}=1 > /etc/sysctl.d/90-libvirt-gci.conf`,
    },
  );
}

export async function checkCapability(context: DoctorContext): Promise<Finding | null> {
  if (!isolates(context)) return null;
  if (isNetworkAdmin(await readHostFile(context, "/proc/self/status") ?? "")) {
    return ok("With CAP_NET_ADMIN, libvirt-gci isolates machines where libvirt's filters do not");
  }
  const { name } = await readOwnUser(context);
  return warning(
    `${name} lacks the capability CAP_NET_ADMIN, so only libvirt isolates machines`,
    {
      meaning: "A guest can send link-local frames past its filter: UDP to the host's services, " +
        "IPv6 routes, and STP if the network's bridge uses it. It also gets replies to " +
        "connections of the last guest that had its address. Give GitLab Runner's unit the " +
        `capability, as ${DROP_IN} does`,
    },
  );
}

export async function checkFilterPrograms(context: DoctorContext): Promise<Finding | null> {
  if (!isolates(context)) return null;
  const programs = ["ebtables", "iptables"];
  const found = await Promise.all(programs.map((name) => hasProgram(context, name)));
  const missing = programs.filter((_, i) => !found[i]);
  if (missing.length === 0) return ok("The host has ebtables and iptables for libvirt's filters");
  const names = missing.join(" ");
  return problem(`The host has no ${missing.join(" and no ")}`, {
    meaning: "libvirt's filters need both: jobs with an isolated machine cannot start",
    remedy: await install(context, { debian: names, fedora: names, arch: "iptables-nft" }),
  });
}

export async function checkFirewall(context: DoctorContext): Promise<Finding | null> {
  const backend = await findSetting(context, "/etc/libvirt/network.conf", "firewall_backend");
  if (backend === null) return isConnected(context) ? await defaultFirewall(context) : null;
  const program = backend === "nftables" ? "nft" : "iptables";
  if (await hasProgram(context, program)) {
    return ok(`libvirt uses ${backend} for the firewall rules of networks`);
  }
  const packages = program === "nft"
    ? { debian: "nftables", fedora: "nftables", arch: "nftables" }
    : { debian: "iptables", fedora: "iptables-nft", arch: "iptables-nft" };
  return problem(
    `libvirt is set to use ${backend} for firewall rules, but the host has no ${program}`,
    { meaning: "No network and no job can start", remedy: await install(context, packages) },
  );
}

async function defaultFirewall({ connection }: LibvirtContext): Promise<Finding> {
  return await connection.libVersion() < FIRST_WITH_NFTABLES
    ? ok("libvirt uses iptables for the firewall rules of networks, as before 10.4")
    : ok("libvirt chooses the backend for the firewall rules of networks");
}

function isolates({ config }: DoctorContext): boolean {
  return allMachines(config).some(({ network }) => network.isolate && network.name !== "none");
}
