// SPDX-License-Identifier: GPL-2.0-or-later
import { Domain } from "../libvirt/domain.ts";
import type { Host } from "./context.ts";
import { findMetadata } from "./metadata.ts";
import { assignmentsIn } from "./standby/waiting.ts";
import { findActivePool } from "./storage/pools.ts";

/**
 * The domain of the machine, or null. If it took over a standby machine, the domain has that one's name,
 * since libvirt cannot rename a running domain. The caller disposes of it.
 */
export async function findDomainOf(machine: string, host: Host): Promise<Domain | null> {
  const own = await Domain.find(host.connection, machine);
  if (own !== null) return own;
  const standby = (await standbysAssignedTo(machine, host)).at(-1);
  return standby === undefined ? null : await Domain.find(host.connection, standby);
}

/** The name of that domain, also after it has ended. */
export async function domainName(machine: string, host: Host): Promise<string> {
  using domain = await Domain.find(host.connection, machine);
  if (domain !== null) return machine;
  return (await standbysAssignedTo(machine, host)).at(-1) ?? machine;
}

/** The standby machines that this one took over and that no other has: one, or more if some failed. */
export async function standbysAssignedTo(
  machine: string,
  { connection, config }: Host,
): Promise<string[]> {
  using pool = await findActivePool(connection, config.pools.overlays);
  const assignments = assignmentsIn(await pool?.volumeNames() ?? []);
  const ours: string[] = [];
  for (const { standby } of assignments.filter((each) => each.machine === machine)) {
    using domain = await Domain.find(connection, standby);
    const metadata = domain && await findMetadata(domain);
    const isOurs = metadata === null
      ? !assignments.some((other) => other.standby === standby && other.machine !== machine)
      : metadata.machine === machine;
    if (isOurs) ours.push(standby);
  }
  return ours;
}
