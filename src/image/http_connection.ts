// SPDX-License-Identifier: GPL-2.0-or-later
import { Broken } from "./http_message.ts";

/** How long one waits for the other side. */
export interface Patience {
  /** How long the other side may say nothing. */
  readonly silenceMs: number;
  readonly signal: AbortSignal;
}

/** What is known of a connection from the start. */
export interface Route {
  /** Whether it leads to this host itself. Behind a proxy, only the URL tells. */
  readonly loops: boolean;
  /** The proxy at the other end, if it is to be asked for whole URLs. */
  readonly proxy: URL | null;
}

const BREAKS = [
  Deno.errors.BrokenPipe,
  Deno.errors.ConnectionAborted,
  Deno.errors.ConnectionReset,
  Deno.errors.TimedOut,
  Deno.errors.UnexpectedEof,
];

/** The error, as one after which another try may help, if that is so. */
export function asBroken(error: unknown): unknown {
  return BREAKS.some((type) => error instanceof type)
    ? new Broken("the connection broke", { cause: error })
    : error;
}

/** A connection that is closed when the other side is silent for too long, or the signal aborts. */
export class HttpConnection implements Disposable {
  readonly route: Route;
  readonly #patience: Patience;
  readonly #onAbort = (): void => this.#fail(this.#patience.signal.reason);
  #conn: Deno.TcpConn | Deno.TlsConn;
  #failure: unknown = null;

  constructor(conn: Deno.TcpConn, patience: Patience, route: Route) {
    this.route = route;
    this.#patience = patience;
    this.#conn = conn;
    patience.signal.addEventListener("abort", this.#onAbort);
    if (patience.signal.aborted) this.#onAbort();
  }

  /** Goes on with TLS: the other side must have a certificate for this host. */
  async startTls(hostname: string, caCerts: string[]): Promise<void> {
    const conn = this.#conn as Deno.TcpConn;
    const tls = await this.#heard(
      Deno.startTls(conn, { hostname, caCerts, alpnProtocols: ["http/1.1"] }),
    );
    this.#conn = tls;
    await this.#heard(tls.handshake());
  }

  /** Reads into the buffer; null at the end. */
  read(buffer: Uint8Array<ArrayBuffer>): Promise<number | null> {
    return this.#heard(this.#conn.read(buffer));
  }

  async write(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    for (let written = 0; written < bytes.length;) {
      written += await this.#heard(this.#conn.write(bytes.subarray(written)));
    }
  }

  /** What the task gives, in time. */
  async #heard<T>(task: Promise<T>): Promise<T> {
    const { silenceMs } = this.#patience;
    const timer = setTimeout(() => {
      this.#fail(new Broken(`no answer for ${silenceMs / 1000} s`));
    }, silenceMs);
    try {
      return await task;
    } catch (error) {
      throw this.#failure ?? asBroken(error);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Closes the connection, so that what waits for it fails for this reason. */
  #fail(reason: unknown): void {
    this.#failure ??= reason;
    this[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.#patience.signal.removeEventListener("abort", this.#onAbort);
    try {
      this.#conn.close();
    } catch {
      // It was closed before.
    }
  }
}
