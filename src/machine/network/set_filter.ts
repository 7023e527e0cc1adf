// SPDX-License-Identifier: GPL-2.0-or-later
import { setGroupForwardMask } from "../../../ffi/bridge_port.ts";
import { readProc } from "../../../ffi/proc.ts";
import { type Connection, isLocalUri } from "../../libvirt/connection.ts";
import { Domain, type DomainState } from "../../libvirt/domain.ts";
import { isLost } from "../../libvirt/error.ts";
import { FilterBinding, NetworkFilter } from "../../libvirt/network_filter.ts";
import { failureOf, type Host } from "../context.ts";
import { interfaceXml, type MachineDomain, withFilterLater } from "../domain_xml.ts";
import { endedFailure } from "./address.ts";
import { cardDevices } from "./filter.ts";
import { sleep } from "../../wait.ts";

/**
 * Sets the filter of the machine's card if the card started without it. Before that, it has link-local
 * frames filtered too. Resolves to whether it set the filter. It uses a connection of its own, because the
 * connection answers nothing until the filter is set. Throws SystemFailure.
 */
export async function setFilter(
  domain: Domain,
  machine: MachineDomain,
  { connection: { uri }, connect }: Host,
): Promise<boolean> {
  const isSet = withFilterLater(machine).filter === machine.filter;
  const mayForward = mayForwardLinkLocal(uri);
  if (machine.filter === null || isSet && !mayForward) return false;
  await using connection = await connect();
  try {
    using same = await Domain.lookup(connection, domain.name);
    if (mayForward) await forwardLinkLocal(same);
    if (!isSet) await updateCard(same, interfaceXml(machine).toString(), connection);
    return !isSet;
  } catch (cause) {
    const state = isLost(cause) ? null : await stateInTheEnd(domain);
    if (state !== null && state !== "active") throw endedFailure(domain.name, state, cause);
    throw failureOf(cause, `set the network filter of the machine "${domain.name}"`, {
      fault: "network",
      what: `Cannot isolate the machine "${domain.name}": libvirt does not set its network filter`,
      advice: "Run libvirt-gci doctor to check what libvirt needs for filters",
    });
  }
}

/**
 * Sets the filter. If QEMU ends meanwhile, libvirt (9.0) leaves a binding of the filter "(null)" to the
 * card's device, and then sets no filter for the next card with this device. So such bindings are deleted.
 */
async function updateCard(domain: Domain, cardXml: string, connection: Connection): Promise<void> {
  const devices = cardDevices(await domain.xml());
  try {
    await domain.updateDevice(cardXml);
  } catch (error) {
    if (!await deleteDeadBindings(devices, connection).catch(() => false)) throw error;
    await domain.updateDevice(cardXml).catch(() => {
      throw error; // says more if QEMU has ended
    });
  }
}

/** Deletes the bindings of these devices to filters that do not exist. Resolves to whether there were any. */
async function deleteDeadBindings(
  devices: readonly string[],
  connection: Connection,
): Promise<boolean> {
  let deleted = false;
  for (const device of devices) {
    using binding = await FilterBinding.find(connection, device);
    if (binding === null) continue;
    using filter = await NetworkFilter.find(connection, binding.filterName);
    if (filter !== null) continue;
    await binding.delete();
    deleted = true;
  }
  return deleted;
}

/** The domain's state after a second at most, since libvirt may notice the end of QEMU a little later. */
async function stateInTheEnd(domain: Domain): Promise<DomainState> {
  for (let tries = 1;; tries++) {
    const state = await domain.state().catch(() => "active" as const);
    if (state !== "active" || tries === 10) return state;
    await sleep(100);
  }
}

/** All but 01:80:c2:00:00:01, the pause frames, which the bridge drops. */
const ALL_GROUPS = 0xfffd;

const CAP_NET_ADMIN = 12n; // linux/capability.h

/**
 * Lets the bridge forward link-local frames of the machine's cards, so that the filter drops them. Otherwise
 * the bridge passes frames to 01:80:c2:00:00:0X to the host's IP stack, past every filter, and believes
 * the guest's spanning tree (STP).
 *
 * It sets `group_fwd_mask` of the card's port (https://docs.kernel.org/networking/bridge.html), which needs
 * CAP_NET_ADMIN. Without such a port, as in Open vSwitch, or without the capability, it does nothing.
 */
async function forwardLinkLocal(domain: Domain): Promise<void> {
  for (const device of cardDevices(await domain.xml())) setGroupForwardMask(device, ALL_GROUPS);
}

/** Whether this process may do so: with the capability, on the hypervisor's host. */
function mayForwardLinkLocal(uri: string): boolean {
  return isLocalUri(uri) && isNetworkAdmin(readProc("self/status") ?? "");
}

/** Whether a process has CAP_NET_ADMIN, by its `/proc/PID/status`. */
export function isNetworkAdmin(status: string): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0";
  return (BigInt(`0x${effective}`) >> CAP_NET_ADMIN & 1n) === 1n;
}
