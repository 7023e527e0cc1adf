// SPDX-License-Identifier: GPL-2.0-or-later
import type { Pointer } from "../../ffi/libvirt.ts";
import type { Connection } from "./connection.ts";
import { Handle } from "./handle.ts";

/** A handle of a network filter. Whoever gets it disposes of it, which leaves the filter as it is. */
export class NetworkFilter extends Handle<"virNWFilter"> {
  readonly name: string;

  constructor(connection: Connection, pointer: Pointer<"virNWFilter">, name: string) {
    super(connection, "virNWFilter", pointer);
    this.name = name;
  }

  /** Removes it. libvirt refuses that while a domain that runs has it on a card. */
  async undefine(): Promise<void> {
    await this.call("virNWFilterUndefine");
  }
}
