// SPDX-License-Identifier: GPL-2.0-or-later
import type { Pointer } from "../../ffi/libvirt.ts";
import type {
  CallName,
  CallParameters,
  CallResult,
  Connection,
  FreeName,
  MethodName,
  OtherParameters,
} from "./connection.ts";

/** The function that frees a handle, by its C structure. */
export const FREE = {
  virDomain: "virDomainFree",
  virNetwork: "virNetworkFree",
  virNWFilter: "virNWFilterFree",
  virNWFilterBinding: "virNWFilterBindingFree",
  virStoragePool: "virStoragePoolFree",
  virStorageVol: "virStorageVolFree",
  virStream: "virStreamFree",
} as const satisfies Record<string, FreeName>;

export type Kind = keyof typeof FREE;

/** A handle of libvirt's. Disposing of it waits for its calls, and leaves its object as it is. */
export abstract class Handle<K extends Kind> implements Disposable {
  protected readonly connection: Connection;
  /** libvirt's name for it; empty if it has none. */
  readonly name: string;
  readonly #kind: K;
  readonly #pointer: Pointer<K>;
  #borrowers = 0;
  #isDisposed = false;

  constructor(connection: Connection, kind: K, pointer: Pointer<K>, name = "") {
    this.connection = connection;
    this.name = name;
    this.#kind = kind;
    this.#pointer = pointer;
  }

  /** The pointer, for synchronous calls that need no daemon. */
  protected get pointer(): Pointer<K> {
    if (this.#isDisposed) throw new Error(`The handle of a ${this.#kind} was disposed of`);
    return this.#pointer;
  }

  /** Lends the pointer until the borrower's promise has settled, also if it is disposed of meanwhile. */
  async lend<T>(borrower: (pointer: Pointer<K>) => Promise<T>): Promise<T> {
    const { pointer } = this;
    this.#borrowers++;
    try {
      return await borrower(pointer);
    } finally {
      this.#borrowers--;
      this.#freeUnused();
    }
  }

  /** As {@linkcode Connection.call}, with this handle for the first parameter. */
  protected call<Name extends MethodName<K>>(
    name: Name,
    ...others: OtherParameters<Name>
  ): Promise<CallResult<Name>> {
    return this.lend((pointer) => this.connection.call(name, ...withFirst<Name>(pointer, others)));
  }

  /** As {@linkcode Connection.callForString}, likewise. */
  protected callForString<Name extends MethodName<K>>(
    name: Name,
    ...others: OtherParameters<Name>
  ): Promise<string> {
    return this.lend((pointer) =>
      this.connection.callForString(name, ...withFirst<Name>(pointer, others))
    );
  }

  [Symbol.dispose](): void {
    if (this.#isDisposed) return;
    this.#isDisposed = true;
    this.#freeUnused();
  }

  #freeUnused(): void {
    if (this.#isDisposed && this.#borrowers === 0) {
      this.connection.release(FREE[this.#kind], this.#pointer);
    }
  }
}

/** Several handles, which the caller disposes of at once. */
export type Handles<T extends Disposable> = readonly T[] & Disposable;

export function together<T extends Disposable>(handles: readonly T[]): Handles<T> {
  return Object.assign([...handles], {
    [Symbol.dispose]() {
      for (const handle of handles) handle[Symbol.dispose]();
    },
  });
}

function withFirst<Name extends CallName>(
  first: unknown,
  others: readonly unknown[],
): CallParameters<Name> {
  return [first, ...others] as unknown as CallParameters<Name>;
}
