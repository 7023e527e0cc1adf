// SPDX-License-Identifier: GPL-2.0-or-later
import type { MachineMetadata } from "./metadata.ts";
import { hostName } from "./process.ts";
import { CHANNEL_ADDRESS } from "./ssh_channel.ts";

/** What a person can do with a new machine, a line each. */
export function stepsByHand(machine: string, metadata: MachineMetadata): readonly string[] {
  const { key, port, user, address } = metadata;
  const ssh = `ssh -i ${key} ${port === 22 ? "" : `-p ${port} `}${user}@${address}`;
  return [
    logIn(machine) + (address === CHANNEL_ADDRESS ? "" : `, or ${ssh}`),
    `Run:       libvirt-gci run --machine ${machine} -- COMMAND`,
    remove(machine),
  ];
}

/** What a reader of a job's log can do with its kept machine, a line each. */
export function stepsWithKept(machine: string, { address }: MachineMetadata): readonly string[] {
  const where = address === CHANNEL_ADDRESS ? "" : ` (${address})`;
  return [
    `${logIn(machine)}, on the host "${hostName()}"${where}`,
    `Keep:      libvirt-gci keep ${machine} --extend 1h`,
    remove(machine),
  ];
}

function logIn(machine: string): string {
  return `Log in:    libvirt-gci ssh ${machine}`;
}

function remove(machine: string): string {
  return `Remove:    libvirt-gci cleanup --machine ${machine}`;
}
