// SPDX-License-Identifier: GPL-2.0-or-later
import { createHash, type Hash } from "node:crypto";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { SystemFailure } from "../../errors.ts";
import { ByteCutter } from "./byte_cutter.ts";
import { type ImageFacts, partBytes } from "./layout.ts";
import { NamelessFile } from "./nameless_file.ts";
import type { Blob } from "./upload.ts";
import { createCompressor } from "./zstd_compressor.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** An image as it is to be pushed. */
export interface PushedImage extends Omit<ImageFacts, "digest"> {
  /** Its bytes, unpacked, in order. */
  open(): ReadableStream<Bytes>;
}

/** A part of an image, compressed. Whoever gets it disposes of it. */
export class ImagePart implements Blob, Disposable {
  /** Which of the image's parts it is, from 0. */
  readonly number: number;
  /** How long it is without compression. */
  readonly plainBytes: number;
  readonly bytes: number;
  readonly digest: string;
  readonly #file: NamelessFile;

  constructor(
    file: NamelessFile,
    { number, plainBytes, hash }: {
      readonly number: number;
      readonly plainBytes: number;
      readonly hash: Hash;
    },
  ) {
    this.#file = file;
    this.number = number;
    this.plainBytes = plainBytes;
    this.bytes = file.bytes;
    this.digest = `sha256:${hash.digest("hex")}`;
  }

  get chunks(): AsyncIterable<Bytes> {
    return this.#file.chunks;
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
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
    const cutter = new ByteCutter(this.#image.open());
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
      await cutter.close();
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
    const file = await NamelessFile.open(this.#directory);
    try {
      const start = this.#bytes;
      const hash = createHash("sha256");
      await pipeline(
        Readable.from(chunks, { objectMode: true, highWaterMark: 1 }),
        createCompressor(),
        async (compressed: AsyncIterable<Uint8Array>) => {
          for await (const chunk of compressed) {
            hash.update(chunk);
            await file.append(chunk);
          }
        },
        { signal: this.#signal },
      );
      return new ImagePart(file, { number, plainBytes: this.#bytes - start, hash });
    } catch (error) {
      file[Symbol.dispose]();
      this.#signal.throwIfAborted();
      throw error;
    }
  }
}
