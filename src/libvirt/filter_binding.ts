// SPDX-License-Identifier: GPL-2.0-or-later
import type { Pointer } from "../../ffi/libvirt.ts";
import { borrowedString } from "../../ffi/memory.ts";
import type { Connection } from "./connection.ts";
import { Handle } from "./handle.ts";

/**
 * What binds a network filter to a device of the host. libvirt makes it with a card that has a filter, and
 * removes it with the card. Whoever gets the handle disposes of it, which leaves the binding as it is.
 */
export class FilterBinding extends Handle<"virNWFilterBinding"> {
  constructor(connection: Connection, pointer: Pointer<"virNWFilterBinding">) {
    super(connection, "virNWFilterBinding", pointer);
  }

  /** The filter that it binds, which may not be there. */
  get filterName(): string {
    const name = this.connection.local.virNWFilterBindingGetFilterName(this.pointer);
    return borrowedString(name) ?? "";
  }

  /** Removes it, and the rules of its device. */
  async delete(): Promise<void> {
    await this.call("virNWFilterBindingDelete");
  }
}
