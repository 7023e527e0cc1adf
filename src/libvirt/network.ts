// SPDX-License-Identifier: GPL-2.0-or-later
import type { Pointer } from "../../ffi/libvirt.ts";
import { borrowedString, cString, OutCell, pointerAt } from "../../ffi/memory.ts";
import type { Connection } from "./connection.ts";
import { orNull, VIR_ERR } from "./error.ts";
import { Handle } from "./handle.ts";

/** virNetworkUpdateCommand: add an entry behind the others. */
export const VIR_NETWORK_UPDATE_COMMAND_ADD_LAST = 3;
/** virNetworkUpdateSection: the hosts that DHCP knows. */
export const VIR_NETWORK_SECTION_IP_DHCP_HOST = 4;
/** virNetworkUpdateFlags: change the network that runs, not its definition. */
export const VIR_NETWORK_UPDATE_AFFECT_LIVE = 1;

/** An address of IPv4 or IPv6 that a guest has for a time. */
export interface DhcpLease {
  readonly mac: string;
  readonly address: string;
  /** In seconds since 1970; 0 is for ever. */
  readonly until: number;
}

/** A handle of a virtual network. Whoever gets it disposes of it. */
export class Network extends Handle<"virNetwork"> {
  readonly name: string;

  private constructor(connection: Connection, pointer: Pointer<"virNetwork">, name: string) {
    super(connection, "virNetwork", pointer);
    this.name = name;
  }

  /** The network of this name. Throws {@linkcode LibvirtError} if there is none. */
  static async lookup(connection: Connection, name: string): Promise<Network> {
    const pointer = await connection.ask("virNetworkLookupByName", cString(name));
    return new Network(connection, pointer, name);
  }

  /** The network of this name, or null if there is none. */
  static find(connection: Connection, name: string): Promise<Network | null> {
    return orNull(VIR_ERR.NO_NETWORK, Network.lookup(connection, name));
  }

  /** Whether it is started. */
  async isActive(): Promise<boolean> {
    return (await this.call("virNetworkIsActive")) === 1;
  }

  /** Whether libvirt starts it with the host. */
  async autostarts(): Promise<boolean> {
    const autostart = new Int32Array(1);
    await this.call("virNetworkGetAutostart", autostart);
    return autostart[0] === 1;
  }

  /** Its XML: addresses, bridge, DHCP. */
  xml(): Promise<string> {
    return this.callForString("virNetworkGetXMLDesc", 0);
  }

  /** What its DHCP server has leased and what has not expired. */
  async dhcpLeases(): Promise<DhcpLease[]> {
    const list = new OutCell();
    const { local } = this.connection;
    const count = await this.call("virNetworkGetDHCPLeases", null, list.buffer, 0);
    const array = list.pointer;
    if (array === null) return [];
    const leases: DhcpLease[] = [];
    for (let i = 0; i < count; i++) {
      const pointer = pointerAt(array, i * 8);
      if (pointer === null) continue;
      leases.push(readLease(pointer));
      local.virNetworkDHCPLeaseFree(pointer);
    }
    local.free(array);
    return leases;
  }

  /**
   * Adds this `<host>` to the DHCP of its n-th `<ip>`, from 0, until the network ends. libvirt refuses
   * (OPERATION_INVALID) what has the MAC or the IP address of one that is there. It takes the network's
   * firewall rules away for a moment: connections that guests begin just then may be lost.
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

/**
 * Reads a `virNetworkDHCPLease` (libvirt-network.h): expirytime at 8, mac at 24, ipaddr at 40. They
 * are the pointer's until it is freed.
 */
function readLease(pointer: Deno.PointerObject): DhcpLease {
  const view = new Deno.UnsafePointerView(pointer);
  return {
    mac: borrowedString(view.getPointer(24)) ?? "",
    address: borrowedString(view.getPointer(40)) ?? "",
    until: Number(view.getBigInt64(8)),
  };
}
