// SPDX-License-Identifier: GPL-2.0-or-later
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** No credentials. */
export const NONE = { basic: null, unused: null };

/** Answers a request, by HTTP's rules or not. */
export type Handler = (request: IncomingMessage, response: ServerResponse) => unknown;

/** A registry of this host that does what a test wants, without TLS. */
export class HostileRegistry implements AsyncDisposable {
  /** Each request as `GET /v2/…`, and its header Authorization if it has one. */
  readonly requests: string[] = [];
  /** What answers; nothing does by default. */
  handler: Handler = (_, response) => response.writeHead(404).end();
  readonly #server: Server;

  private constructor() {
    this.#server = createServer((request, response) => {
      const { method, url, headers: { authorization } } = request;
      this.requests.push([method, url, authorization].filter((it) => it !== undefined).join(" "));
      this.handler(request, response);
    });
  }

  static async start(hostname = "127.0.0.1"): Promise<HostileRegistry> {
    const registry = new HostileRegistry();
    const { promise, resolve } = Promise.withResolvers<void>();
    registry.#server.listen(0, hostname, resolve);
    await promise;
    return registry;
  }

  get host(): string {
    const { address, port } = this.#server.address() as AddressInfo;
    return `${address}:${port}`;
  }

  /** The source of an image here. */
  source(path = "image:40"): string {
    return `oci+http://${this.host}/${path}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    this.#server.closeAllConnections();
    await promise;
  }
}

/** What the bytes are called. */
export function digestOf(bytes: string | Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}
