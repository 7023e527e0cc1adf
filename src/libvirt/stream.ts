// SPDX-License-Identifier: GPL-2.0-or-later
import type { Connection } from "./connection.ts";
import { Handle } from "./handle.ts";

/** The most that a message of libvirt's streams carries. */
const CHUNK_BYTES = 256 * 1024;

/** A stream of bytes to or from the object that a call has opened at its other end. */
export class Stream extends Handle<"virStream"> {
  /** Gives the body a stream of these virStreamFlags, then finishes it, or aborts it on failure. */
  static async with<T>(
    connection: Connection,
    body: (stream: Stream) => Promise<T>,
    flags = 0,
  ): Promise<T> {
    const pointer = await connection.ask("virStreamNew", flags);
    using stream = new Stream(connection, "virStream", pointer);
    try {
      const result = await body(stream);
      await stream.call("virStreamFinish"); // waits until the other end has taken all
      return result;
    } catch (error) {
      await stream.call("virStreamAbort").catch(() => {}); // the first failure counts
      throw error;
    }
  }

  /** Sends these bytes, or a part of them, and gives how many; -2 if it would wait. */
  send(bytes: Uint8Array<ArrayBuffer>): Promise<number> {
    return this.call("virStreamSend", bytes, BigInt(bytes.length));
  }

  /** Receives into these bytes, and gives how many; 0 at the end, -2 if it would wait. */
  receive(bytes: Uint8Array<ArrayBuffer>): Promise<number> {
    return this.call("virStreamRecv", bytes, BigInt(bytes.length));
  }

  async sendAll(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    for (let sent = 0; sent < bytes.length;) {
      sent += await this.send(bytes.subarray(sent, sent + CHUNK_BYTES));
    }
  }

  /** All that comes until the end. Throws Error if that is more than so many bytes. */
  async receiveAll(mostBytes = Infinity): Promise<Uint8Array<ArrayBuffer>> {
    const chunks: Uint8Array<ArrayBuffer>[] = [];
    let left = mostBytes;
    for (;;) {
      const chunk = new Uint8Array(CHUNK_BYTES);
      const length = await this.receive(chunk);
      if (length === 0) return new Uint8Array(await new Blob(chunks).arrayBuffer());
      left -= length;
      if (left < 0) throw new Error(`it has more than ${mostBytes} bytes`);
      chunks.push(chunk.subarray(0, length));
    }
  }
}
