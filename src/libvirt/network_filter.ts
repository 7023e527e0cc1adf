// SPDX-License-Identifier: GPL-2.0-or-later
import { borrowedString, cString } from "../../ffi/memory.ts";
import type { Connection } from "./connection.ts";
import { orNull, VIR_ERR } from "./error.ts";
import { Handle } from "./handle.ts";

const UUID_STRING_BYTES = 37; // VIR_UUID_STRING_BUFLEN

/** A handle of a network filter. The caller disposes of it, which leaves the filter as it is. */
export class NetworkFilter extends Handle<"virNWFilter"> {
  /** The network filter of this name, or null if there is none, or a driver without any. */
  static async find(connection: Connection, name: string): Promise<NetworkFilter | null> {
    const lookup = connection.ask("virNWFilterLookupByName", cString(name));
    const pointer = await orNull(VIR_ERR.NO_NWFILTER, orNull(VIR_ERR.NO_SUPPORT, lookup));
    return pointer && new NetworkFilter(connection, "virNWFilter", pointer, name);
  }

  /** Defines a network filter of this name and XML, which stays until it is undefined. */
  static async define(connection: Connection, name: string, xml: string): Promise<NetworkFilter> {
    const pointer = await connection.ask("virNWFilterDefineXML", cString(xml));
    return new NetworkFilter(connection, "virNWFilter", pointer, name);
  }

  /** The names and UUIDs of all network filters, or null if the driver has no filters. */
  static async list(
    connection: Connection,
  ): Promise<{ readonly name: string; readonly uuid: string }[] | null> {
    const list = connection.askForList("virConnectListAllNWFilters", 0);
    const pointers = await orNull(VIR_ERR.NO_SUPPORT, list);
    return pointers && pointers.map((pointer) => {
      const name = borrowedString(connection.local.virNWFilterGetName(pointer)) ?? "";
      const uuid = new Uint8Array(UUID_STRING_BYTES);
      connection.local.virNWFilterGetUUIDString(pointer, uuid);
      connection.release("virNWFilterFree", pointer);
      return { name, uuid: new TextDecoder().decode(uuid.subarray(0, -1)) };
    });
  }

  /** Removes it. libvirt refuses that while a domain that runs has it on a card. */
  async undefine(): Promise<void> {
    await this.call("virNWFilterUndefine");
  }
}

/** Binds a network filter to a device of the host. libvirt makes and removes it with the card. */
export class FilterBinding extends Handle<"virNWFilterBinding"> {
  static async find(connection: Connection, device: string): Promise<FilterBinding | null> {
    const lookup = connection.ask("virNWFilterBindingLookupByPortDev", cString(device));
    const pointer = await orNull(VIR_ERR.NO_NWFILTER_BINDING, lookup);
    return pointer && new FilterBinding(connection, "virNWFilterBinding", pointer);
  }

  /** The filter that it binds, which may not exist. */
  get filterName(): string {
    const name = this.connection.local.virNWFilterBindingGetFilterName(this.pointer);
    return borrowedString(name) ?? "";
  }

  /** Removes it, and the rules of its device. */
  async delete(): Promise<void> {
    await this.call("virNWFilterBindingDelete");
  }
}
