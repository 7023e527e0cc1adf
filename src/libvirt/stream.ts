// SPDX-License-Identifier: GPL-2.0-or-later
import type { Connection } from "./connection.ts";
import { Handle } from "./handle.ts";

/** The most that a message of libvirt's streams carries. */
const CHUNK_BYTES = 256 * 1024;
/** Zeros are sent as a hole in pieces of this size, which is that of qcow2's clusters. */
const HOLE_BYTES = 64 * 1024;

/** How to send what may take long. */
export interface SendOptions {
  /** Ends it when it aborts. */
  readonly signal: AbortSignal;
  /** Told how many bytes were sent so far. */
  readonly onBytes?: ((bytes: number) => void) | undefined;
}

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

  /** Sends all of these bytes, unless the signal aborts: then it throws the signal's reason. */
  async sendAll(bytes: Uint8Array<ArrayBuffer>, signal?: AbortSignal): Promise<void> {
    for (let sent = 0; sent < bytes.length;) {
      signal?.throwIfAborted();
      sent += await this.send(bytes.subarray(sent, sent + CHUNK_BYTES));
    }
  }

  /**
   * Sends parts of the source until these are at least so many bytes, or the source ends. Long runs of zeros
   * are sent as holes: the other end must take these. Throws the signal's reason once it has aborted.
   */
  async sendSparse(
    source: ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>>,
    bytes: number,
    { signal, onBytes }: SendOptions,
  ): Promise<{ readonly sent: number; readonly isEnd: boolean }> {
    let sent = 0;
    let hole = 0;
    const endHole = async (): Promise<void> => {
      if (hole > 0) await this.call("virStreamSendHole", BigInt(hole), 0);
      hole = 0;
    };
    while (sent < bytes) {
      const { value } = await source.read();
      signal.throwIfAborted();
      if (value === undefined) break;
      for (const { part, isZero } of partsOf(value)) {
        if (isZero) {
          hole += part.length;
        } else {
          await endHole();
          await this.sendAll(part, signal);
        }
        sent += part.length;
        onBytes?.(sent);
        signal.throwIfAborted();
      }
    }
    await endHole();
    return { sent, isEnd: sent < bytes };
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

/** The bytes in their order, in parts of which each is zero as a whole, or is not to be a hole. */
function* partsOf(
  bytes: Uint8Array<ArrayBuffer>,
): Generator<{ readonly part: Uint8Array<ArrayBuffer>; readonly isZero: boolean }> {
  let start = 0;
  for (let at = 0; at < bytes.length;) {
    const end = Math.min(at + HOLE_BYTES, bytes.length);
    if (isZero(bytes.subarray(at, end))) {
      if (start < at) yield { part: bytes.subarray(start, at), isZero: false };
      yield { part: bytes.subarray(at, end), isZero: true };
      start = end;
    }
    at = end;
  }
  if (start < bytes.length) yield { part: bytes.subarray(start), isZero: false };
}

function isZero(bytes: Uint8Array<ArrayBuffer>): boolean {
  const { buffer, byteOffset, length } = bytes;
  if (byteOffset % 4 !== 0 || length % 4 !== 0) return bytes.every((byte) => byte === 0);
  const words = new Uint32Array(buffer, byteOffset, length / 4);
  for (let i = 0; i < words.length; i++) if (words[i] !== 0) return false;
  return true;
}
