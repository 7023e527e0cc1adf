// SPDX-License-Identifier: GPL-2.0-or-later
import { borrowedString, cString, OutCell } from "../../ffi/memory.ts";
import type { Connection } from "./connection.ts";
import { orNull, VIR_ERR } from "./error.ts";
import { Handle } from "./handle.ts";

// virNetworkUpdateCommand, virNetworkUpdateSection and virNetworkUpdateFlags.
export const VIR_NETWORK_UPDATE_COMMAND_ADD_LAST = 3;
export const VIR_NETWORK_SECTION_IP_DHCP_HOST = 4;
export const VIR_NETWORK_UPDATE_AFFECT_LIVE = 1; // the network that runs, not its definition

export interface DhcpLease {
  readonly mac: string;
  readonly address: string;
  /** In seconds since 1970; 0 is for ever. */
  readonly until: number;
}

/** A handle of a virtual network. The caller disposes of it. */
export class Network extends Handle<"virNetwork"> {
  static async lookup(connection: Connection, name: string): Promise<Network> {
    const pointer = await connection.ask("virNetworkLookupByName", cString(name));
    return new Network(connection, "virNetwork", pointer, name);
  }

  static find(connection: Connection, name: string): Promise<Network | null> {
    return orNull(VIR_ERR.NO_NETWORK, Network.lookup(connection, name));
  }

  async isActive(): Promise<boolean> {
    return (await this.call("virNetworkIsActive")) === 1;
  }

  async autostarts(): Promise<boolean> {
    const autostart = new Int32Array(1);
    await this.call("virNetworkGetAutostart", autostart);
    return autostart[0] === 1;
  }

  xml(): Promise<string> {
    return this.callForString("virNetworkGetXMLDesc", 0);
  }

  /** The leases of its DHCP server that have not expired. */
  async dhcpLeases(): Promise<DhcpLease[]> {
    const list = new OutCell();
    const count = await this.call("virNetworkGetDHCPLeases", null, list.buffer, 0);
    return this.connection.takeArray(list, count).map((pointer) => {
      const lease = readLease(pointer);
      this.connection.local.virNetworkDHCPLeaseFree(pointer);
      return lease;
    });
  }

  /**
   * Adds this `<host>` to the DHCP of its n-th `<ip>`, from 0, until the network ends. libvirt refuses
   * it (OPERATION_INVALID) if another has the same MAC or IP address. The network's firewall rules are
   * gone for a moment: connections that guests begin just then may be lost.
   */
  async addDhcpHost(hostXml: string, ipIndex: number): Promise<void> {
    await this.call(
      "virNetworkUpdate",
      VIR_NETWORK_UPDATE_COMMAND_ADD_LAST,
      VIR_NETWORK_SECTION_IP_DHCP_HOST,
      ipIndex,
      cString(hostXml),
      VIR_NETWORK_UPDATE_AFFECT_LIVE,
    );
  }
}

/** Reads a `virNetworkDHCPLease` (libvirt-network.h): expirytime at 8, mac at 24, ipaddr at 40. */
function readLease(pointer: Deno.PointerObject): DhcpLease {
  const view = new Deno.UnsafePointerView(pointer);
  return {
    mac: borrowedString(view.getPointer(24)) ?? "",
    address: borrowedString(view.getPointer(40)) ?? "",
    until: Number(view.getBigInt64(8)),
  };
}
