// SPDX-License-Identifier: GPL-2.0-or-later
import { Buffer } from "node:buffer";
import { orFailure } from "../../errors.ts";
import { refuseUntrusted } from "../../files.ts";
import type { RandomAccess } from "../qcow2_tables.ts";

type Bytes = Uint8Array<ArrayBuffer>;

const BUFFER_BYTES = 1024 ** 2;
const ZEROS = new Uint8Array(BUFFER_BYTES);

/**
 * A file without a name: nothing is left of it when it is closed, or however the program ends. Whoever opens
 * it disposes of it. Only one at a time may read or write.
 */
export class NamelessFile implements RandomAccess, Disposable {
  readonly #file: Deno.FsFile;
  readonly #directory: string;
  #bytes = 0;

  private constructor(file: Deno.FsFile, directory: string) {
    this.#file = file;
    this.#directory = directory;
  }

  /** Opens one in the directory, which is made if it is not there. */
  static async open(directory: string): Promise<NamelessFile> {
    await orFailure(Deno.mkdir(directory, { recursive: true, mode: 0o700 }), {
      what: `Cannot create the directory for downloads: "${directory}"`,
    });
    refuseUntrusted(directory, await Deno.stat(directory), "the downloads");
    const path = await Deno.makeTempFile({ dir: directory, prefix: "nameless-" });
    try {
      return new NamelessFile(await Deno.open(path, { read: true, write: true }), directory);
    } finally {
      await Deno.remove(path);
    }
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Writes the bytes to its end. Zeros take no space on the disk. Throws SystemFailure. */
  async append(bytes: Uint8Array): Promise<void> {
    this.#bytes += bytes.length;
    await orFailure(this.#write(bytes), {
      what: `Cannot write to a file in "${this.#directory}"`,
      advice: "Free space there, or use another directory",
      fault: "storage",
    });
  }

  async #write(bytes: Uint8Array): Promise<void> {
    if (isZeros(bytes)) return await this.#file.truncate(this.#bytes);
    await this.#file.seek(this.#bytes - bytes.length, Deno.SeekMode.Start);
    for (let written = 0; written < bytes.length;) {
      written += await this.#file.write(bytes.subarray(written));
    }
  }

  async read(offset: number, length: number): Promise<Bytes> {
    await this.#file.seek(offset, Deno.SeekMode.Start);
    const buffer = new Uint8Array(Math.max(0, Math.min(length, this.#bytes - offset)));
    for (let filled = 0; filled < buffer.length;) {
      const read = await this.#file.read(buffer.subarray(filled));
      if (read === null) return buffer.subarray(0, filled);
      filled += read;
    }
    return buffer;
  }

  /** All its bytes, from the first one each time that they are iterated. */
  get chunks(): AsyncIterable<Bytes> {
    return { [Symbol.asyncIterator]: () => this.#readAll() };
  }

  async *#readAll(): AsyncGenerator<Bytes> {
    for (let at = 0; at < this.#bytes; at += BUFFER_BYTES) yield await this.read(at, BUFFER_BYTES);
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }
}

function isZeros(bytes: Uint8Array): boolean {
  return bytes.length <= ZEROS.length &&
    Buffer.compare(bytes, ZEROS.subarray(0, bytes.length)) === 0;
}
