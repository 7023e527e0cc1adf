// SPDX-License-Identifier: GPL-2.0-or-later
import type { Pointer } from "../../ffi/libvirt.ts";
import type { Connection } from "./connection.ts";

/** A handle of a network filter. Whoever gets it disposes of it, which leaves the filter as it is. */
export class NetworkFilter implements Disposable {
  readonly name: string;
  readonly #connection: Connection;
  readonly #pointer: Pointer<"virNWFilter">;

  constructor(connection: Connection, pointer: Pointer<"virNWFilter">, name: string) {
    this.#connection = connection;
    this.#pointer = pointer;
    this.name = name;
  }

  /** Removes it. libvirt refuses that while a domain that runs has it on a card. */
  async undefine(): Promise<void> {
    await this.#connection.call("virNWFilterUndefine", this.#pointer);
  }

  [Symbol.dispose](): void {
    this.#connection.release("virNWFilterFree", this.#pointer);
  }
}
