// SPDX-License-Identifier: GPL-2.0-or-later
import { allMachines, type DoctorContext, type LibvirtContext, needsLibvirt } from "./check.ts";
import { type Finding, type Found, ok, problem, warning } from "./finding.ts";
import { networkFindings } from "./network_xml.ts";
import { Network } from "../libvirt/network.ts";
import { virsh } from "../shell.ts";

export const group = { name: "network", checks: [needsLibvirt(checkNetworks)] };

export async function checkNetworks(context: LibvirtContext): Promise<Found> {
  const names = new Set(allMachines(context.config).map(({ network }) => network.name));
  names.delete("none");
  return await Promise.all(Array.from(names, (name) => checkNetwork(context, name)));
}

async function checkNetwork(context: LibvirtContext, name: string): Promise<Found> {
  using network = await Network.find(context.connection, name);
  if (network === null) return missingNetwork(name, context);
  const states = { isActive: await network.isActive(), autostarts: await network.autostarts() };
  return [
    startFindings(name, states, context),
    networkFindings(await network.xml(), { config: context.config, name }),
  ];
}

function missingNetwork(name: string, { config }: LibvirtContext): Finding {
  const define = virsh(config.libvirt, "net-define", "/usr/share/libvirt/networks/default.xml");
  return problem(`The network "${name}" does not exist`, {
    meaning: 'Jobs in this network cannot start. The setting "network.name" names it',
    remedy: name === "default"
      ? `${define} && ${virsh(config.libvirt, "net-start", "default")}`
      : virsh(config.libvirt, "net-list", "--all"),
  });
}

export function startFindings(
  name: string,
  { isActive, autostarts }: { readonly isActive: boolean; readonly autostarts: boolean },
  context: Pick<DoctorContext, "config">,
): Found {
  if (isActive && autostarts) return ok(`The network "${name}" is active`);
  return [
    isActive ? null : problem(`The network "${name}" is not active`, {
      meaning: "Jobs in this network cannot start",
      remedy: virsh(context.config.libvirt, "net-start", name),
    }),
    autostarts ? null : warning(`The network "${name}" does not start at boot`, {
      meaning: "After a reboot, jobs in this network cannot start",
      remedy: virsh(context.config.libvirt, "net-autostart", name),
    }),
  ];
}
