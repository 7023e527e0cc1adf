// SPDX-License-Identifier: GPL-2.0-or-later

const LIBVIRT = "/run/libvirt/libvirt-sock";

/** Procedures of libvirt's protocol (remote_protocol.x) at which a {@linkcode StallingProxy} stalls. */
export const PROCEDURE = {
  CONNECT_OPEN: 1,
  DOMAIN_CREATE_XML: 10,
  DOMAIN_DESTROY: 12,
  DOMAIN_LOOKUP_BY_NAME: 23,
  STORAGE_VOL_CREATE_XML: 93,
  STORAGE_VOL_DELETE: 94,
  DOMAIN_INTERFACE_ADDRESSES: 353,
} as const;

/**
 * A daemon that hangs: it passes on what a client and libvirt's daemon say to each other, until a
 * client calls this procedure. The daemon gets that call too, but no client gets an answer any more, new
 * clients neither, until {@linkcode recover}.
 */
export class StallingProxy implements AsyncDisposable {
  readonly #directory: string;
  readonly #listener: Deno.UnixListener;
  readonly #connections = new Set<Deno.UnixConn>();
  readonly #serving: Promise<void>;
  readonly #procedure: number;
  #calls: number;
  #stalled = false;

  /** It stalls at the first call of the procedure, or at a later one. */
  constructor(procedure: number, calls = 1) {
    this.#procedure = procedure;
    this.#calls = calls;
    this.#directory = Deno.makeTempDirSync({ prefix: "libvirt-gci-faults-" });
    this.#listener = Deno.listen({ transport: "unix", path: `${this.#directory}/sock` });
    this.#serving = this.#serve();
  }

  get uri(): string {
    return `qemu+unix:///system?socket=${this.#directory}/sock`;
  }

  get hasStalled(): boolean {
    return this.#stalled;
  }

  /** Stalls when that many further calls of the procedure have come. */
  stallAtCall(calls: number): void {
    this.#calls = calls;
  }

  /** Serves new clients, and never stalls again. */
  recover(): void {
    this.#stalled = false;
    this.#calls = Infinity;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close();
    for (const connection of this.#connections) connection.close();
    await this.#serving;
    await Deno.remove(this.#directory, { recursive: true });
  }

  async #serve(): Promise<void> {
    const relays: Promise<unknown>[] = [];
    for await (const client of this.#listener) {
      const daemon = await Deno.connect({ transport: "unix", path: LIBVIRT });
      this.#connections.add(client).add(daemon);
      relays.push(this.#relay(client, daemon, messages), this.#relay(daemon, client, parts));
    }
    await Promise.all(relays);
  }

  async #relay(from: Deno.UnixConn, to: Deno.UnixConn, split: typeof parts): Promise<void> {
    try {
      for await (const message of split(from)) {
        if (split === parts && this.#stalled) continue; // an answer
        await to.write(message);
        if (split === messages && procedureOf(message) === this.#procedure) {
          this.#stalled ||= --this.#calls === 0;
        }
      }
    } catch {
      // One of them closed its end.
    }
    for (const connection of [from, to]) {
      if (this.#connections.delete(connection)) connection.close();
    }
  }
}

/** What comes, as it comes. */
async function* parts(from: Deno.UnixConn): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const buffer = new Uint8Array(65536);
  for (let length; (length = await from.read(buffer)) !== null;) yield buffer.slice(0, length);
}

/** What comes, message by message: each begins with its length. */
async function* messages(from: Deno.UnixConn): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  let held = new Uint8Array();
  for await (const part of parts(from)) {
    held = new Uint8Array([...held, ...part]);
    for (;;) {
      const length = held.length < 4 ? Infinity : new DataView(held.buffer).getUint32(0);
      if (held.length < length) break;
      yield held.slice(0, length);
      held = held.slice(length);
    }
  }
}

function procedureOf(message: Uint8Array<ArrayBuffer>): number {
  return new DataView(message.buffer).getUint32(12);
}
