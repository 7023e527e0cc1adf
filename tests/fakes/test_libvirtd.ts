// SPDX-License-Identifier: GPL-2.0-or-later
import { Buffer } from "node:buffer";
import { LibvirtError, VIR_ERR } from "../../src/libvirt/error.ts";
import "./test_host.ts"; // which loads the libraries, so that no test is blamed for it

/**
 * The programs and procedures of libvirt's wire protocol that tests answer: remote_protocol.x and
 * qemu_protocol.x.
 */
export const PROCEDURE = {
  CONNECT_OPEN: "20008086:1",
  CONNECT_CLOSE: "20008086:2",
  DOMAIN_CREATE_XML: "20008086:10",
  DOMAIN_DESTROY: "20008086:12",
  DOMAIN_SUSPEND: "20008086:34",
  STORAGE_POOL_DEFINE_XML: "20008086:77",
  STORAGE_POOL_LOOKUP_BY_NAME: "20008086:84",
  STORAGE_VOL_CREATE_XML: "20008086:93",
  STORAGE_VOL_LOOKUP_BY_NAME: "20008086:95",
  STORAGE_VOL_UPLOAD: "20008086:208",
  NWFILTER_LOOKUP_BY_NAME: "20008086:175",
  NWFILTER_DEFINE_XML: "20008086:180",
  NWFILTER_BINDING_LOOKUP_BY_PORT_DEV: "20008086:397",
  NWFILTER_BINDING_DELETE: "20008086:400",
  DOMAIN_GET_XML_DESC: "20008086:14",
  DOMAIN_LOOKUP_BY_NAME: "20008086:23",
  DOMAIN_GET_METADATA: "20008086:265",
  NETWORK_GET_XML_DESC: "20008086:43",
  NETWORK_GET_DHCP_LEASES: "20008086:341",
  NETWORK_LOOKUP_BY_NAME: "20008086:46",
  CONNECT_SUPPORTS_FEATURE: "20008086:60",
  AUTH_LIST: "20008086:66",
  DOMAIN_OPEN_CONSOLE: "20008086:201",
  DOMAIN_GET_STATE: "20008086:212",
  CONNECT_LIST_ALL_DOMAINS: "20008086:273",
  DOMAIN_INTERFACE_ADDRESSES: "20008086:353",
  QEMU_AGENT_COMMAND: "20008087:3",
} as const;

const HEADER_BYTES = 28;
const CALL = 0;
const REPLY = 1;
const STREAM = 3;
const STREAM_HOLE = 6;
const OK = 0;
const ERROR = 1;
/** Where an error comes from (virErrorDomain in virterror.h). */
const VIR_FROM_QEMU = 10;
const VIR_FROM_NWFILTER = 33;
const CONTINUE = 2;

/** What a message has in it, part behind part, as XDR (RFC 4506). */
export function xdr(...parts: readonly (number | string | Uint8Array)[]): Uint8Array<ArrayBuffer> {
  const bytes = parts.map((part) => {
    if (part instanceof Uint8Array) return part;
    if (typeof part === "string") return xdrString(new TextEncoder().encode(part));
    const number = Buffer.alloc(4);
    number.writeInt32BE(part);
    return number;
  });
  return new Uint8Array(Buffer.concat(bytes));
}

/** A string of these bytes, which need be no UTF-8. */
export function xdrString(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  return xdr(bytes.length, bytes, new Uint8Array((4 - bytes.length % 4) % 4));
}

/** Thrown instead of an answer, it ends the connection, as a daemon does that is killed. */
export class HangUp extends Error {}

/**
 * Answers a call with what is in it, or throws an Error, whose words the caller gets; of a LibvirtError
 * its number and errno too.
 */
export type Answer = (
  payload: Uint8Array,
) => Uint8Array<ArrayBuffer> | Promise<Uint8Array<ArrayBuffer>>;

/** A domain or a network of this name, as the protocol has it. */
export function handle(name: string, ...rest: readonly number[]): Uint8Array<ArrayBuffer> {
  return xdr(name, new Uint8Array(16), ...rest);
}

/**
 * A libvirt daemon without a hypervisor, on a socket of its own: the client's library is libvirt's,
 * and what the daemon hands on of a guest is what the test says.
 */
export class TestLibvirtd implements AsyncDisposable {
  readonly uri: string;
  /** How much came in streams. */
  receivedBytes = 0;
  /** What came in streams, with the length of each hole; data of several messages as one. */
  readonly stream: { bytes: Uint8Array; readonly hole: number | null }[] = [];
  /** How each stream ended. */
  readonly streamEnds: ("finished" | "aborted")[] = [];
  readonly #listener: Deno.Listener;
  readonly #answers: ReadonlyMap<string, Answer>;
  readonly #console: Uint8Array | null;
  readonly #streamsStall: boolean;
  readonly #connections = new Set<Promise<void>>();
  readonly #end = Promise.withResolvers<void>();

  /**
   * `console` is what comes at once from a console that is opened. `streamsStall`: whether no more is read
   * from a connection once it has a stream.
   */
  constructor(
    answers: Readonly<Partial<Record<keyof typeof PROCEDURE, Answer>>>,
    { console = null, streamsStall = false }: {
      readonly console?: Uint8Array | null;
      readonly streamsStall?: boolean;
    } = {},
  ) {
    this.#console = console;
    this.#streamsStall = streamsStall;
    const path = Deno.makeTempFileSync({ prefix: "libvirt-gci-test-" });
    Deno.removeSync(path);
    this.uri = `qemu+unix:///system?socket=${path}`;
    const all: Readonly<Record<string, Answer>> = {
      AUTH_LIST: () => xdr(1, 0), // none
      CONNECT_SUPPORTS_FEATURE: () => xdr(0),
      CONNECT_OPEN: () => xdr(),
      CONNECT_CLOSE: () => xdr(),
      DOMAIN_LOOKUP_BY_NAME: () => handle("m", 1),
      DOMAIN_GET_STATE: () => xdr(1, 1), // it runs
      ...answers,
    };
    const keys = Object.entries(PROCEDURE);
    this.#answers = new Map(keys.flatMap(([name, key]) => all[name] ? [[key, all[name]]] : []));
    this.#listener = Deno.listen({ transport: "unix", path });
    this.#accept();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close(); // which removes the socket
    this.#end.resolve();
    await Promise.all(this.#connections);
  }

  async #accept(): Promise<void> {
    for await (const connection of this.#listener) {
      this.#connections.add(this.#serve(connection));
    }
  }

  async #serve(connection: Deno.Conn): Promise<void> {
    const writer = connection.writable.getWriter();
    try {
      for await (const message of messages(connection.readable)) {
        const header = new DataView(message.buffer, message.byteOffset, HEADER_BYTES);
        if (this.#takeStream(header, message) && this.#streamsStall) {
          await this.#end.promise;
          throw new HangUp();
        }
        const answer = await this.#answer(header, message.subarray(HEADER_BYTES));
        if (answer !== null) await writer.write(answer);
        if (this.#console !== null && opensConsole(header)) {
          const said = { type: STREAM, status: CONTINUE, payload: this.#console };
          await writer.write(reply(header, said));
        }
      }
    } catch (error) {
      if (!(error instanceof Deno.errors.BrokenPipe || error instanceof HangUp)) throw error;
    } finally {
      await writer.close().catch(() => {});
    }
  }

  /** Whether it is a message of a stream. */
  #takeStream(header: DataView, message: Uint8Array): boolean {
    const type = header.getInt32(16);
    if (type !== STREAM && type !== STREAM_HOLE) return false;
    const status = header.getInt32(24);
    if (status !== CONTINUE) {
      this.streamEnds.push(status === OK ? "finished" : "aborted");
      return true;
    }
    const payload = message.subarray(HEADER_BYTES);
    const last = this.stream.at(-1);
    if (type === STREAM_HOLE) {
      const length = new DataView(payload.buffer, payload.byteOffset).getBigInt64(0);
      this.stream.push({ bytes: new Uint8Array(), hole: Number(length) });
      return true;
    }
    this.receivedBytes += payload.length;
    if (last?.hole === null) last.bytes = Buffer.concat([last.bytes, payload]);
    else this.stream.push({ bytes: Buffer.from(payload), hole: null });
    return true;
  }

  /** The answer to a call; null for what needs none. */
  async #answer(header: DataView, payload: Uint8Array): Promise<Uint8Array<ArrayBuffer> | null> {
    const type = header.getInt32(16);
    if (type === STREAM_HOLE) return null;
    if (type === STREAM) {
      // Its end is confirmed, good or bad.
      return header.getInt32(24) === CONTINUE ? null : reply(header, { type: STREAM, status: OK });
    }
    if (type !== CALL) return null;
    const key = procedureOf(header);
    try {
      const answer = this.#answers.get(key);
      if (answer === undefined) throw new Error(`no answer to ${key}`);
      return reply(header, { type: REPLY, status: OK, payload: await answer(payload) });
    } catch (error) {
      if (error instanceof HangUp) throw error;
      const { code, errno, words } = error instanceof LibvirtError ? error : {
        code: VIR_ERR.INTERNAL_ERROR,
        errno: null,
        words: error instanceof Error ? error.message : String(error),
      };
      // remote_error: its number, of QEMU's driver, its words, and seven things more: errno is int1.
      // A client takes errors of filters from elsewhere for other errors, as old daemons sent them.
      const domain = code === VIR_ERR.NO_NWFILTER ? VIR_FROM_NWFILTER : VIR_FROM_QEMU;
      const payload = xdr(code, domain, 1, words, 2, 0, 0, 0, 0, errno ?? -1, -1, 0);
      return reply(header, { type: REPLY, status: ERROR, payload });
    }
  }
}

/** What a message is about, as PROCEDURE has it. */
function procedureOf(header: DataView): string {
  return `${header.getUint32(4).toString(16)}:${header.getInt32(12)}`;
}

function opensConsole(header: DataView): boolean {
  return header.getInt32(16) === CALL && procedureOf(header) === PROCEDURE.DOMAIN_OPEN_CONSOLE;
}

function reply(
  header: DataView,
  { type, status, payload = new Uint8Array() }: {
    readonly type: number;
    readonly status: number;
    readonly payload?: Uint8Array;
  },
): Uint8Array<ArrayBuffer> {
  const [program, version, procedure, serial] = [4, 8, 12, 20].map((at) => header.getInt32(at));
  const rest = xdr(program ?? 0, version ?? 0, procedure ?? 0, type, serial ?? 0, status, payload);
  return xdr(rest.length + 4, rest);
}

/** The messages of a stream, each with its length and whole. */
async function* messages(stream: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  let held: Uint8Array = new Uint8Array();
  for await (const bytes of stream) {
    held = Buffer.concat([held, bytes]);
    for (;;) {
      if (held.length < 4) break;
      const length = new DataView(held.buffer, held.byteOffset).getUint32(0);
      if (held.length < length) break;
      yield held.subarray(0, length);
      held = held.subarray(length);
    }
  }
}
