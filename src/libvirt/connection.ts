// SPDX-License-Identifier: GPL-2.0-or-later
import { type Libvirt, loadLibvirt, type Pointer } from "../../ffi/libvirt.ts";
import { type LibvirtQemu, loadLibvirtQemu, qemuSymbols } from "../../ffi/libvirt_qemu.ts";
import { borrowedString, cBytes, cString, OutCell, pointerAt } from "../../ffi/memory.ts";
import { type CallTime, inTime, lost, noAnswer, timeToOpen } from "./call_time.ts";
import { errorBuffer, LibvirtError, takeError, VIR_ERR } from "./error.ts";
import { loadWithAdvice, openError } from "./open_error.ts";

/** The functions that may ask the daemon: each goes through {@linkcode Connection.call}. */
export type CallName = {
  [Name in keyof Functions]: Functions[Name] extends (...args: never[]) => Promise<unknown> ? Name
    : never;
}[keyof Functions];

interface Functions extends Libvirt, LibvirtQemu {}
export type CallParameters<Name extends CallName> = Parameters<Functions[Name]>;
/** Its result, if it did not fail. */
export type CallResult<Name extends CallName> = NonNullable<Awaited<ReturnType<Functions[Name]>>>;

/** The functions whose first parameter is a handle of this C structure. */
export type MethodName<Brand extends string> = {
  [Name in CallName]: Pointer<Brand> extends CallParameters<Name>[0] ? Name : never;
}[CallName];
export type OtherParameters<Name extends CallName> = CallParameters<Name> extends
  [unknown, ...infer Others] ? Others : never;

/** The functions that list handles into an array, and what they list. */
interface Lists {
  readonly virConnectListAllDomains: "virDomain";
  readonly virConnectListAllNWFilters: "virNWFilter";
  readonly virStoragePoolListAllVolumes: "virStorageVol";
}

/** The functions that need no daemon. */
type LocalName = Exclude<keyof Libvirt, CallName>;

/** The functions that free an object of libvirt's. */
export type FreeName = Extract<keyof Libvirt, `vir${string}Free`>;

/** The time that calls may take, and a listener for them. */
export interface ConnectionOptions extends CallTime {
  /** Called when a call has ended, for `--debug`. */
  readonly onCall?: ((functionName: string, milliseconds: number) => void) | null;
}

const CLOSE_MS = 3000;

/**
 * A connection to a hypervisor.
 *
 * libvirt keeps its last error per thread and our calls run on threads of a pool, but it copies each
 * error into the connection it belongs to. So the calls of one connection take turns, and the error
 * of a call is read from the connection before the next begins
 * (https://libvirt.org/html/libvirt-virterror.html#virConnCopyLastError).
 */
export class Connection implements AsyncDisposable {
  /** The opens of all connections take turns, since a failed open leaves its error in one place. */
  static #openTurn: Promise<void> = Promise.resolve();
  static #openError: Uint8Array<ArrayBuffer> | undefined;

  readonly uri: string;
  readonly #libvirt: Libvirt;
  readonly #pointer: Pointer<"virConnect">;
  readonly #options: ConnectionOptions;
  #turn: Promise<void> = Promise.resolve();
  /** Whether a call never came back, so that every further one would wait behind it. */
  #stuck = false;
  #isClosed = false;

  private constructor(
    uri: string,
    libvirt: Libvirt,
    { pointer, options }: { pointer: Pointer<"virConnect">; options: ConnectionOptions },
  ) {
    this.uri = uri;
    this.#libvirt = libvirt;
    this.#pointer = pointer;
    this.#options = options;
  }

  /** Connects to the hypervisor at this URI. Throws {@linkcode LibvirtError} with advice. */
  static async open(uri: string, options: ConnectionOptions = {}): Promise<Connection> {
    const libvirt = loadWithAdvice(loadLibvirt);
    const { promise: done, resolve: endTurn } = Promise.withResolvers<void>();
    const turn = Connection.#openTurn;
    Connection.#openTurn = done;
    await turn;
    try {
      const buffer = Connection.#catchOpenErrors(libvirt);
      const open = libvirt.virConnectOpen(cString(uri));
      const pointer = await inTime("virConnectOpen", open, timeToOpen(options));
      if (pointer === null) throw openError(uri, takeError("virConnectOpen", libvirt, buffer));
      // A silent handler keeps this connection's errors out of the buffer above.
      libvirt.virConnSetErrorFunc(pointer, null, libvirt.freeAddress);
      return new Connection(uri, libvirt, { pointer, options });
    } finally {
      endTurn();
    }
  }

  /**
   * Makes libvirt copy the errors of failed opens into a buffer, natively and on the thread that fails,
   * instead of printing them on stderr.
   */
  static #catchOpenErrors(libvirt: Libvirt): Uint8Array<ArrayBuffer> {
    if (Connection.#openError === undefined) {
      Connection.#openError = errorBuffer();
      libvirt.virSetErrorFunc(Connection.#openError, libvirt.virCopyLastError);
    }
    return Connection.#openError;
  }

  get isLocal(): boolean {
    return isLocalUri(this.uri);
  }

  /**
   * Calls a function of libvirt in its turn. Throws {@linkcode LibvirtError} if it fails or does not
   * come back in time, and Error if the connection was closed.
   */
  async call<Name extends CallName>(
    name: Name,
    ...args: CallParameters<Name>
  ): Promise<CallResult<Name>> {
    if (this.#isClosed) throw new Error(`${name} was called on a connection that was closed`);
    if (name === "virConnectClose") this.#isClosed = true;
    const { promise: done, resolve: endTurn } = Promise.withResolvers<void>();
    const turn = this.#turn;
    this.#turn = done;
    await turn;
    const start = performance.now();
    try {
      if (this.#stuck) throw noAnswer(name, "an earlier call is still unanswered");
      this.#libvirt.virConnResetLastError(this.#pointer);
      const isOfQemu = name in qemuSymbols;
      const library = isOfQemu ? loadWithAdvice(loadLibvirtQemu) : this.#libvirt;
      const symbol = (library as Functions)[name] as (
        ...args: CallParameters<Name>
      ) => Promise<CallResult<Name> | null>;
      const result = await inTime(name, symbol(...args), this.#options, () => this.#stuck = true);
      if (result === null || result === -1) throw this.#lastError(name);
      return result;
    } finally {
      endTurn();
      this.#options.onCall?.(name, performance.now() - start);
    }
  }

  /** As {@linkcode call}, with this connection for the first parameter. */
  ask<Name extends MethodName<"virConnect">>(
    name: Name,
    ...others: OtherParameters<Name>
  ): Promise<CallResult<Name>> {
    const parameters = [this.#pointer, ...others] as unknown as CallParameters<Name>;
    return this.call(name, ...parameters);
  }

  /** As {@linkcode call}, for a function whose result is a `char *` that is ours to free. */
  async callForString<Name extends CallName>(
    name: Name,
    ...args: CallParameters<Name>
  ): Promise<string> {
    const pointer = (await this.call(name, ...args)) as unknown as Deno.PointerObject;
    try {
      return borrowedString(pointer) ?? "";
    } finally {
      this.#libvirt.free(pointer);
    }
  }

  /**
   * As {@linkcode callForString}, but throws LibvirtError for a longer string: a guest may choose it.
   */
  async callForShortString<Name extends CallName>(
    name: Name,
    mostBytes: number,
    ...args: CallParameters<Name>
  ): Promise<string> {
    const pointer = (await this.call(name, ...args)) as unknown as Deno.PointerObject;
    try {
      const bytes = cBytes(pointer, mostBytes + 1);
      if (bytes.length <= mostBytes) return new TextDecoder().decode(bytes);
    } finally {
      this.#libvirt.free(pointer);
    }
    const words = `the answer has more than ${mostBytes} bytes`;
    throw new LibvirtError(name, words, { code: VIR_ERR.OPERATION_FAILED });
  }

  /** As {@linkcode call}, for a function that lists handles, each of which the caller gives back. */
  async callForList<Name extends keyof Lists>(
    name: Name,
    owner: CallParameters<Name>[0],
    flags: number,
  ): Promise<Pointer<Lists[Name]>[]> {
    const list = new OutCell();
    const args = [owner, list.buffer, flags] as unknown as CallParameters<Name>;
    return this.takeArray(list, Number(await this.call(name, ...args))) as Pointer<Lists[Name]>[];
  }

  /** The pointers in an array that a call has put here. Frees the array. */
  takeArray(list: OutCell, count: number): Deno.PointerObject[] {
    const array = list.pointer;
    if (array === null) return [];
    const pointers = Array.from({ length: count }, (_, i) => pointerAt(array, i * 8));
    this.#libvirt.free(array);
    return pointers.filter((pointer) => pointer !== null);
  }

  /** As {@linkcode callForList}, with this connection for the first parameter. */
  askForList<Name extends keyof Lists & MethodName<"virConnect">>(
    name: Name,
    flags: number,
  ): Promise<Pointer<Lists[Name]>[]> {
    return this.callForList(name, this.#pointer as CallParameters<Name>[0], flags);
  }

  /** Frees a handle in its turn, or leaks it if a stuck call may use it. */
  release(free: FreeName, pointer: Deno.PointerObject): void {
    const give = this.#libvirt[free] as (pointer: Deno.PointerObject) => unknown;
    this.#turn = this.#turn.then(() => {
      if (!this.#stuck) give(pointer);
    });
  }

  /** The functions that ask no daemon, for handles that read C structures. */
  get local(): Pick<Libvirt, LocalName> {
    return this.#libvirt;
  }

  capabilities(): Promise<string> {
    return this.callForString("virConnectGetCapabilities", this.#pointer);
  }

  /** The version of the daemon's libvirt: 9001002 is 9.1.2. */
  async libVersion(): Promise<number> {
    const version = new BigUint64Array(1);
    await this.ask("virConnectGetLibVersion", version);
    return Number(version[0]);
  }

  /** The hypervisor's version, counted likewise. */
  async hypervisorVersion(): Promise<number> {
    const version = new BigUint64Array(1);
    await this.ask("virConnectGetVersion", version);
    return Number(version[0]);
  }

  /** Closes the connection and gives the references left: more than 0 is a handle not disposed of. */
  close(): Promise<number> {
    return this.ask("virConnectClose");
  }

  /** Closes the connection if that is quick. It never throws: the work on it counts. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#stuck || this.#isClosed) return;
    const { promise: late, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, CLOSE_MS);
    await Promise.race([this.close().catch(() => {}), late]);
    clearTimeout(timer);
  }

  #lastError(functionName: string): LibvirtError {
    const buffer = errorBuffer();
    this.#libvirt.virConnCopyLastError(this.#pointer, buffer);
    const error = takeError(functionName, this.#libvirt, buffer);
    const isLost = this.#libvirt.virConnectIsAlive(this.#pointer) === 0; // -1: it cannot tell
    return isLost ? lost(functionName, error.words, error.code) : error;
  }
}

/** Whether the URI is of a hypervisor on this host: it names no other host. */
export function isLocalUri(uri: string): boolean {
  return /^[^/]+:\/\/\//.test(uri);
}
