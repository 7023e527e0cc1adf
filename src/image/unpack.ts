// SPDX-License-Identifier: GPL-2.0-or-later
import { pipeline, type Transform } from "node:stream";
import { createGunzip, createZstdDecompress, type ZlibOptions } from "node:zlib";
import { SystemFailure } from "../errors.ts";
import { ZstdFrame } from "./zstd_frame.ts";

declare module "node:zlib" {
  // Node has it since 22.15, the types that ssh2's types bring along do not.
  function createZstdDecompress(options?: ZlibOptions): Transform;
}

type Bytes = Uint8Array<ArrayBuffer>;

/** How a file may be packed. */
export type Packing = "gzip" | "zstd";

const MAGICS: readonly (readonly [packing: Packing, magic: readonly number[]])[] = [
  ["gzip", [0x1f, 0x8b]],
  ["zstd", [0x28, 0xb5, 0x2f, 0xfd]],
];
const CHUNK_BYTES = 1024 ** 2;

/** How a file is packed that begins so; null if it is not, or in another way. */
export function packingOf(start: Bytes): Packing | null {
  const found = MAGICS.find(([, magic]) => magic.every((byte, i) => start[i] === byte));
  return found?.[0] ?? null;
}

/** What to unpack, which messages call `name`, and how much that may be. */
export interface UnpackOptions {
  readonly packing: Packing;
  readonly name: string;
  readonly mostBytes: number;
}

/**
 * Unpacks what comes, and holds no more of it than a few chunks and zstd's window. Throws SystemFailure if
 * it is broken, cut off, more than allowed, or followed by anything else, also after all of it was given.
 */
export async function* unpack(
  packed: AsyncIterable<Bytes>,
  { packing, name, mostBytes }: UnpackOptions,
): AsyncGenerator<Bytes> {
  let bytes = 0;
  try {
    for await (const chunk of packing === "gzip" ? gunzip(packed) : unzstd(packed)) {
      bytes += chunk.length;
      if (bytes > mostBytes) throw new Error(`it unpacks to more than ${mostBytes} bytes`);
      yield chunk;
    }
  } catch (cause) {
    if (cause instanceof SystemFailure) throw cause; // of what comes
    throw new SystemFailure({
      what: `Cannot unpack ${name} by ${packing}`,
      cause: isCutOff(cause) ? new Error("it is cut off") : cause,
      advice: "Check it where it comes from, and fetch it again",
    });
  }
}

function isCutOff(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "Z_BUF_ERROR";
}

function gunzip(packed: AsyncIterable<Bytes>): AsyncGenerator<Bytes> {
  return through(createGunzip({ chunkSize: CHUNK_BYTES }), packed); // of all members
}

async function* unzstd(packed: AsyncIterable<Bytes>): AsyncGenerator<Bytes> {
  const source = packed[Symbol.asyncIterator]();
  try {
    for (let ahead = await nextOf(source); ahead !== null;) {
      const frame = bytesOfFrame(ahead, source, (rest) => ahead = rest);
      yield* through(createZstdDecompress({ chunkSize: CHUNK_BYTES }), frame);
      if (ahead.length === 0) ahead = await nextOf(source);
    }
  } finally {
    await source.return?.();
  }
}

/** The next bytes, if there are any. */
async function nextOf(source: AsyncIterator<Bytes>): Promise<Bytes | null> {
  for (;;) {
    const { done, value } = await source.next();
    if (done) return null;
    if (value.length > 0) return value;
  }
}

/** The bytes of one frame, of which the first are there. Says what is behind it. */
async function* bytesOfFrame(
  start: Bytes,
  source: AsyncIterator<Bytes>,
  leave: (rest: Bytes) => void,
): AsyncGenerator<Bytes> {
  const frame = new ZstdFrame();
  for (let bytes: Bytes | null = start;; bytes = await nextOf(source)) {
    if (bytes === null) throw new Error("it is cut off");
    const taken = frame.take(bytes);
    leave(bytes.subarray(taken)); // before the decoder is through
    yield bytes.subarray(0, taken);
    if (frame.isOver) return;
  }
}

/** What the decoder makes of the bytes. */
async function* through(decoder: Transform, bytes: AsyncIterable<Bytes>): AsyncGenerator<Bytes> {
  pipeline(bytes, decoder, () => {}); // which fails when the decoder does
  try {
    yield* decoder as AsyncIterable<Bytes>;
  } finally {
    decoder.destroy();
  }
}
