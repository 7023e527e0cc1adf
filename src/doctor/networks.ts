// SPDX-License-Identifier: GPL-2.0-or-later
import { Network } from "../libvirt/network.ts";
import { virsh } from "../shell.ts";
import { allMachines, type DoctorContext } from "./check.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";
import { networkFindings } from "./network_xml.ts";

/** Each network that the settings name. */
export async function checkNetworks(context: DoctorContext): Promise<Finding[]> {
  if (context.connection instanceof Error) return [];
  const names = allMachines(context.config).map(({ network }) => network);
  const findings: Finding[] = [];
  for (const name of new Set(names.filter((name) => name !== "none"))) {
    findings.push(...await checkNetwork(context, name));
  }
  return findings;
}

async function checkNetwork(context: DoctorContext, name: string): Promise<Finding[]> {
  const { connection, factsOf } = context;
  if (connection instanceof Error) return [];
  using network = await Network.find(connection, name);
  if (network === null) {
    return [
      problem(`There is no network "${name}"`, {
        meaning: 'No job starts whose machine is to be in it. "network" is a setting',
        remedy: name === "default"
          ? ["net-define /usr/share/libvirt/networks/default.xml", "net-start default"]
            .map((words) => virsh(context.config, ...words.split(" "))).join(" && ")
          : virsh(context.config, "net-list", "--all"),
      }),
    ];
  }
  const isActive = await network.isActive();
  const autostarts = await factsOf(connection).networkAutostarts(name);
  return [
    ...startFindings(name, { isActive, autostarts }, context),
    ...networkFindings(await network.xml(), { ...context, name }),
  ];
}

/** Whether a network is there for machines now, and after a reboot. */
export function startFindings(
  name: string,
  { isActive, autostarts }: { readonly isActive: boolean; readonly autostarts: boolean },
  context: Pick<DoctorContext, "config">,
): Finding[] {
  const findings: Finding[] = [];
  if (!isActive) {
    findings.push(
      problem(`The network "${name}" is not active`, {
        meaning: "No job starts whose machine is to be in it",
        remedy: virsh(context.config, "net-start", name),
      }),
    );
  }
  if (!autostarts) {
    findings.push(
      warning(`The network "${name}" does not start with the host`, {
        meaning: "After a reboot, no job starts whose machine is to be in it",
        remedy: virsh(context.config, "net-autostart", name),
      }),
    );
  }
  return findings.length > 0 ? findings : [ok(`The network "${name}" is active`)];
}
