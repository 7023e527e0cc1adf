// SPDX-License-Identifier: GPL-2.0-or-later
import { createHash, type Hash } from "node:crypto";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { orFailure, SystemFailure } from "../../errors.ts";
import { refuseUntrusted } from "../../files.ts";
import { type ImageFacts, partBytes } from "./layout.ts";
import type { Blob } from "./upload.ts";
import { createCompressor } from "./zstd_compressor.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** An image as it is to be pushed. */
export interface PushedImage extends Omit<ImageFacts, "digest"> {
  /** Its bytes, unpacked, in order. */
  open(): ReadableStream<Bytes>;
}

const BUFFER_BYTES = 1024 ** 2;

/** A part of an image, compressed. Whoever gets it disposes of it. */
export class ImagePart implements Blob, Disposable {
  /** Which of the image's parts it is, from 0. */
  readonly number: number;
  /** How long it is without compression. */
  readonly plainBytes: number;
  readonly bytes: number;
  readonly digest: string;
  readonly #file: Deno.FsFile;

  constructor(
    file: Deno.FsFile,
    { number, plainBytes, bytes, hash }: {
      readonly number: number;
      readonly plainBytes: number;
      readonly bytes: number;
      readonly hash: Hash;
    },
  ) {
    this.#file = file;
    this.number = number;
    this.plainBytes = plainBytes;
    this.bytes = bytes;
    this.digest = `sha256:${hash.digest("hex")}`;
  }

  /** Its bytes, from the first one each time. */
  get chunks(): AsyncIterable<Bytes> {
    return this.#read();
  }

  async *#read(): AsyncGenerator<Bytes> {
    await this.#file.seek(0, Deno.SeekMode.Start);
    for (;;) {
      const buffer = new Uint8Array(BUFFER_BYTES);
      const length = await this.#file.read(buffer);
      if (length === null) return;
      yield buffer.subarray(0, length);
    }
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }
}

/** The parts of an image, one after the other, and what it is once they have been read. */
export class ImageParts {
  readonly #image: PushedImage;
  readonly #directory: string;
  readonly #signal: AbortSignal;
  readonly #hash = createHash("sha256");
  #bytes = 0;

  /** Parts are kept in files in the directory, without names, so that nothing is left of them. */
  constructor(
    image: PushedImage,
    { directory, signal }: { readonly directory: string; readonly signal: AbortSignal },
  ) {
    this.#image = image;
    this.#directory = directory;
    this.#signal = signal;
  }

  /** What is to be said of the image, once all parts were read. */
  get facts(): ImageFacts {
    const { format, virtualBytes, fileBytes } = this.#image;
    const digest = `sha256:${this.#hash.copy().digest("hex")}`;
    return { format, virtualBytes, fileBytes, digest };
  }

  /** Throws SystemFailure if the image is not as long as it was. */
  async *[Symbol.asyncIterator](): AsyncGenerator<ImagePart> {
    const { fileBytes } = this.#image;
    const cutter = new Cutter(this.#image.open());
    try {
      const length = partBytes(fileBytes);
      for (let number = 0; this.#bytes < fileBytes; number++) {
        const before = this.#bytes;
        const part = await this.#compress(number, this.#count(cutter.take(length)));
        if (this.#bytes === before) {
          part[Symbol.dispose]();
          break;
        }
        yield part;
      }
      for await (const chunk of cutter.take(1)) this.#bytes += chunk.length;
    } finally {
      await cutter.cancel();
    }
    if (this.#bytes === fileBytes) return;
    const found = this.#bytes < fileBytes ? `only ${this.#bytes}` : "more";
    throw new SystemFailure({
      what: `The image has changed while it was read: it has ${found} bytes, not ${fileBytes}`,
      advice: "Wait until nobody writes to it, and try again",
    });
  }

  async *#count(chunks: AsyncIterable<Bytes>): AsyncGenerator<Bytes> {
    for await (const chunk of chunks) {
      this.#hash.update(chunk);
      this.#bytes += chunk.length;
      yield chunk;
    }
  }

  async #compress(number: number, chunks: AsyncIterable<Bytes>): Promise<ImagePart> {
    const file = await openNameless(this.#directory);
    try {
      const start = this.#bytes;
      const hash = createHash("sha256");
      let bytes = 0;
      await pipeline(
        Readable.from(chunks, { objectMode: true, highWaterMark: 1 }),
        createCompressor(),
        async (compressed: AsyncIterable<Uint8Array>) => {
          for await (const chunk of compressed) {
            hash.update(chunk);
            bytes += chunk.length;
            await writeAll(file, chunk);
          }
        },
        { signal: this.#signal },
      );
      return new ImagePart(file, { number, plainBytes: this.#bytes - start, bytes, hash });
    } catch (error) {
      file.close();
      this.#signal.throwIfAborted();
      throw error;
    }
  }
}

/** Cuts a stream into pieces of the lengths that are asked for. */
class Cutter {
  readonly #reader: ReadableStreamDefaultReader<Bytes>;
  #ahead: Bytes | null = null;

  constructor(stream: ReadableStream<Bytes>) {
    this.#reader = stream.getReader();
  }

  /** The next so many bytes, or fewer at the end. */
  async *take(bytes: number): AsyncGenerator<Bytes> {
    for (let left = bytes; left > 0;) {
      const chunk = this.#ahead ?? (await this.#reader.read()).value;
      if (chunk === undefined) return;
      const part = chunk.subarray(0, left);
      this.#ahead = part.length < chunk.length ? chunk.subarray(part.length) : null;
      left -= part.length;
      yield part;
    }
  }

  async cancel(): Promise<void> {
    await this.#reader.cancel().catch(() => {}); // it may have failed before
  }
}

/** A file in the directory without a name, so that it is gone when it is closed, or the program ends. */
async function openNameless(directory: string): Promise<Deno.FsFile> {
  await orFailure(Deno.mkdir(directory, { recursive: true, mode: 0o700 }), {
    what: `Cannot create the directory for the image's parts: "${directory}"`,
  });
  refuseUntrusted(directory, await Deno.stat(directory), "the image's parts");
  const path = await Deno.makeTempFile({ dir: directory, prefix: "push-" });
  try {
    return await Deno.open(path, { read: true, write: true });
  } finally {
    await Deno.remove(path);
  }
}

async function writeAll(file: Deno.FsFile, bytes: Uint8Array): Promise<void> {
  for (let written = 0; written < bytes.length;) {
    written += await file.write(bytes.subarray(written));
  }
}
