// SPDX-License-Identifier: GPL-2.0-or-later
import type { Pointer } from "../../ffi/libvirt.ts";
import type { Connection } from "./connection.ts";

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

  [Symbol.dispose](): void {
    this.#connection.release("virNetworkFree", this.#pointer);
  }
}
