// SPDX-License-Identifier: GPL-2.0-or-later
import { createHash } from "node:crypto";
import { SystemFailure } from "../errors.ts";
import { readDiskFormat } from "./disk_format.ts";
import { ImageFile } from "./image_file.ts";
import { PartialFile } from "./partial_file.ts";
import { type Packing, packingOf, unpack } from "./unpack.ts";
import { randomHex } from "../random.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** A disk image that is there as a local file. Disposing of it removes what was fetched. */
export interface LocalImage extends AsyncDisposable {
  readonly format: "qcow2" | "raw";
  /** The size of the disk that a guest sees. */
  readonly virtualBytes: number;
  /** The length of the image's file, unpacked. */
  readonly fileBytes: number;
  /**
   * sha256 of what was fetched, as `sha256:<hex>`: the manifest's digest for a registry. That of a file
   * that was there, without a promise, is known when all its bytes have passed. Before, this throws Error.
   */
  readonly digest: string;
  /** Its bytes, unpacked, in order, by one stream at a time. It fails if they are not what was promised. */
  open(): ReadableStream<Bytes>;
}

/** A file that was fetched, or was there before. */
export interface FetchedFile {
  readonly path: string;
  /** What messages call it, in double quotes. */
  readonly name: string;
  /** Its SHA-256 as promised or as found, in hexadecimal; null if there was no promise. */
  readonly sha256: string | null;
  /** Removes what was fetched. */
  readonly remove: () => Promise<void>;
}

/** Bounds of an image. */
export interface ImageLimits {
  /** Of its file, packed and unpacked. */
  readonly mostBytes: number;
  /** Of the disk that a guest sees. */
  readonly mostVirtualBytes: number;
}

export interface LocalImageOptions extends ImageLimits {
  /** Where to unpack it. */
  readonly directory: string;
  readonly signal: AbortSignal;
}

const MAGIC_BYTES = 16;
/** What is compared when all bytes pass: it has the names of other files that an image may have. */
const START_BYTES = 64 * 1024;

/**
 * Makes an image of the file, which is unpacked first if it has to be. Throws SystemFailure if it is none
 * that can become a template; then what was fetched is removed.
 */
export async function openLocalImage(
  fetched: FetchedFile,
  options: LocalImageOptions,
): Promise<LocalImage> {
  await using undo = new AsyncDisposableStack();
  undo.defer(fetched.remove);
  const file = new CheckedFile(undo.use(await ImageFile.open(fetched.path, fetched.name)), fetched);
  const packing = packingOf(await file.read(0, MAGIC_BYTES));
  const plain = packing === null ? file : await unpackFile(file, packing, { ...options, undo });
  const { name } = fetched;
  if (plain.bytes > options.mostBytes) {
    throw new SystemFailure({
      what: `The image ${name} has more than ${options.mostBytes} bytes`,
      advice: "Use a smaller image, or allow a larger one",
    });
  }
  const disk = await readDiskFormat(plain, { ...options, name });
  const start = await plain.read(0, START_BYTES);
  const owned = undo.move();
  return {
    ...disk,
    fileBytes: plain.bytes,
    get digest(): string {
      if (file.sha256 === null) throw new Error("no digest is known before all bytes have passed");
      return `sha256:${file.sha256}`;
    },
    open: () => streamOf(plain.chunks({ start, signal: options.signal })),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** A stream that reads ahead, and so hashes what comes next while its reader works. */
function streamOf(chunks: AsyncGenerator<Bytes>): ReadableStream<Bytes> {
  return new ReadableStream({
    pull: async (controller) => {
      const { done, value } = await chunks.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    cancel: async () => void await chunks.return(undefined),
  }, { highWaterMark: 2 });
}

/** An image's file, whose SHA-256 is checked when all of it passes. */
class CheckedFile {
  /** What is promised; once all of it has passed, what it is. */
  sha256: string | null;
  readonly bytes: number;
  readonly name: string;
  readonly #file: ImageFile;

  constructor(file: ImageFile, { name, sha256 }: Pick<FetchedFile, "name" | "sha256">) {
    this.#file = file;
    this.bytes = file.bytes;
    this.name = name;
    this.sha256 = sha256;
  }

  read(offset: number, length: number): Promise<Bytes> {
    return this.#file.read(offset, length);
  }

  /** All bytes. Throws SystemFailure at their end if they are not as promised, or do not begin so. */
  async *chunks(
    { start, signal }: { readonly start: Bytes; readonly signal: AbortSignal },
  ): AsyncGenerator<Bytes> {
    const hash = createHash("sha256");
    let bytes = 0;
    for await (const chunk of this.#file.chunks()) {
      signal.throwIfAborted();
      if (bytes === 0 && !isEqual(start, chunk.subarray(0, start.length))) throw this.#changed();
      hash.update(chunk);
      bytes += chunk.length;
      yield chunk;
    }
    if (bytes !== this.bytes) throw this.#changed();
    const found = hash.digest("hex");
    if (this.sha256 !== null && this.sha256 !== found) {
      throw new SystemFailure({
        what: `The SHA-256 of the image ${this.name} is ${found}, not ${this.sha256}`,
        advice: "Check the SHA-256. If it is right, fetch the image again",
      });
    }
    this.sha256 = found;
  }

  #changed(): SystemFailure {
    return new SystemFailure({
      what: `The image ${this.name} has changed while it was read`,
      advice: "Wait until nothing writes to it, and try again",
    });
  }
}

function isEqual(one: Bytes, other: Bytes): boolean {
  return one.length === other.length && one.every((byte, i) => byte === other[i]);
}

/** Unpacks to a file of our own, which the stack removes. */
async function unpackFile(
  file: CheckedFile,
  packing: Packing,
  { undo, mostBytes, ...options }: LocalImageOptions & { readonly undo: AsyncDisposableStack },
): Promise<CheckedFile> {
  const { name } = file;
  const partial = await PartialFile.open(`unpacked-${randomHex(8)}`, options);
  undo.defer(() => partial.remove());
  const start = await file.read(0, START_BYTES);
  const packed = file.chunks({ start, signal: options.signal });
  for await (const chunk of unpack(packed, { packing, name, mostBytes })) {
    await partial.append(chunk);
  }
  const unpacked = undo.use(await ImageFile.open(partial.path, name));
  return new CheckedFile(unpacked, { name, sha256: partial.sha256() });
}
