// SPDX-License-Identifier: GPL-2.0-or-later
import type { Pointer } from "../../ffi/libvirt.ts";
import { borrowedString, cString, OutCell, pointerAt } from "../../ffi/memory.ts";
import type { Connection } from "./connection.ts";

export const VIR_CONNECT_LIST_NETWORKS_ACTIVE = 2;
export const VIR_NETWORK_UPDATE_COMMAND_DELETE = 2;
export const VIR_NETWORK_UPDATE_COMMAND_ADD_LAST = 3;
export const VIR_NETWORK_SECTION_IP_DHCP_HOST = 4;
export const VIR_NETWORK_UPDATE_AFFECT_LIVE = 1;

const LEASE_ADDRESS = 40; // ipaddr in virNetworkDHCPLease (libvirt-network.h)

/** A handle of a virtual network. Whoever gets it disposes of it. */
export class Network implements Disposable {
  readonly name: string;
  readonly #connection: Connection;
  readonly #pointer: Pointer<"virNetwork">;

  constructor(connection: Connection, pointer: Pointer<"virNetwork">, name: string) {
    this.#connection = connection;
    this.#pointer = pointer;
    this.name = name;
  }

  /** Whether it is started. */
  async isActive(): Promise<boolean> {
    return (await this.#connection.call("virNetworkIsActive", this.#pointer)) === 1;
  }

  /** Whether libvirt starts it with the host. */
  async autostarts(): Promise<boolean> {
    const autostart = new Int32Array(1);
    await this.#connection.call("virNetworkGetAutostart", this.#pointer, autostart);
    return autostart[0] === 1;
  }

  /** Its XML: addresses, bridge, DHCP. */
  xml(): Promise<string> {
    return this.#connection.callForString("virNetworkGetXMLDesc", this.#pointer, 0);
  }

  /** The addresses that its DHCP server has leased, to whomever; of IPv4 and IPv6. */
  async leasedAddresses(): Promise<string[]> {
    const list = new OutCell();
    const connection = this.#connection;
    const count = await connection.call(
      "virNetworkGetDHCPLeases",
      this.#pointer,
      null,
      list.buffer,
      0,
    );
    const leases = list.pointer;
    if (leases === null) return [];
    const addresses = Array.from({ length: count }, (_, i) => {
      const lease = pointerAt(leases, i * 8);
      const address = lease && borrowedString(pointerAt(lease, LEASE_ADDRESS));
      connection.local.virNetworkDHCPLeaseFree(lease);
      return address ?? "";
    });
    connection.local.free(leases);
    return addresses;
  }

  /**
   * Adds this `<host>` to the DHCP of its n-th `<ip>`, from 0, until the network ends. libvirt refuses
   * (OPERATION_INVALID) what has the MAC or the IP address of one that is there.
   */
  async addDhcpHost(hostXml: string, ipIndex: number): Promise<void> {
    await this.#updateDhcpHosts(VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, hostXml, ipIndex);
  }

  /** Removes the `<host>` with these addresses there; if there is none, OPERATION_INVALID. */
  async removeDhcpHost(hostXml: string, ipIndex: number): Promise<void> {
    await this.#updateDhcpHosts(VIR_NETWORK_UPDATE_COMMAND_DELETE, hostXml, ipIndex);
  }

  async #updateDhcpHosts(command: number, hostXml: string, ipIndex: number): Promise<void> {
    await this.#connection.call(
      "virNetworkUpdate",
      this.#pointer,
      command,
      VIR_NETWORK_SECTION_IP_DHCP_HOST,
      ipIndex,
      cString(hostXml),
      VIR_NETWORK_UPDATE_AFFECT_LIVE,
    );
  }

  [Symbol.dispose](): void {
    this.#connection.release("virNetworkFree", this.#pointer);
  }
}
