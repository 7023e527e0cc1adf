// SPDX-License-Identifier: GPL-2.0-or-later

/** What a {@linkcode RawServer} does with a request, whose head it has read, and some of its body. */
export type Answer = (head: string, conn: Deno.TcpConn, body: string) => Promise<unknown>;

/** Writes this text to the connection. */
export async function write(conn: Deno.TcpConn, text: string): Promise<void> {
  const bytes = new TextEncoder().encode(text);
  for (let sent = 0; sent < bytes.length;) sent += await conn.write(bytes.subarray(sent));
}

/** A server that sends what a test wants, whether that is HTTP or not. */
export class RawServer implements AsyncDisposable {
  /** The heads of all requests. */
  readonly requests: string[] = [];
  readonly #listener: Deno.TcpListener;
  readonly #conns = new Set<Deno.TcpConn>();
  readonly #served: Promise<void>;

  constructor(answer: Answer, hostname = "127.0.0.1") {
    this.#listener = Deno.listen({ hostname, port: 0 });
    this.#served = this.#serve(answer);
  }

  /** Its address, with its port. */
  get host(): string {
    const { hostname, port } = this.#listener.addr;
    return `${hostname}:${port}`;
  }

  url(path = "/"): URL {
    return new URL(path, `http://${this.host}`);
  }

  async #serve(answer: Answer): Promise<void> {
    const answering: Promise<void>[] = [];
    for await (const conn of this.#listener) {
      this.#conns.add(conn);
      answering.push(this.#answer(conn, answer).catch(() => {})); // its client may have left
    }
    await Promise.all(answering);
  }

  async #answer(conn: Deno.TcpConn, answer: Answer): Promise<void> {
    try {
      const buffer = new Uint8Array(64 * 1024);
      let text = "";
      while (!text.includes("\r\n\r\n")) {
        const length = await conn.read(buffer);
        if (length === null) return;
        text += new TextDecoder("latin1").decode(buffer.subarray(0, length));
      }
      const end = text.indexOf("\r\n\r\n") + 4;
      this.requests.push(text.slice(0, end));
      await answer(text.slice(0, end), conn, text.slice(end));
    } finally {
      this.#close(conn);
    }
  }

  #close(conn: Deno.TcpConn): void {
    if (this.#conns.delete(conn)) conn.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close();
    for (const conn of this.#conns) this.#close(conn);
    await this.#served;
  }
}
