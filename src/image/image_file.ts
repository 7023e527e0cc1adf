// SPDX-License-Identifier: GPL-2.0-or-later
import { orFailure, SystemFailure } from "../errors.ts";
import type { RandomAccess } from "./qcow2_tables.ts";

type Bytes = Uint8Array<ArrayBuffer>;

const CHUNK_BYTES = 1024 ** 2;

/** A local file with an image. Whoever opens it disposes of it. Only one at a time may read. */
export class ImageFile implements RandomAccess, Disposable {
  readonly bytes: number;
  readonly #file: Deno.FsFile;

  private constructor(file: Deno.FsFile, bytes: number) {
    this.#file = file;
    this.bytes = bytes;
  }

  /** Opens the file, which messages call `name`. Throws SystemFailure if it is none. */
  static async open(path: string, name: string): Promise<ImageFile> {
    const failure = {
      what: `Cannot read the image ${name}`,
      advice: "Check its path, and that this user may read it",
    };
    const { isFile } = await orFailure(Deno.stat(path), failure); // a FIFO would not even open
    if (!isFile) {
      throw new SystemFailure({ ...failure, cause: new Error("it is no regular file") });
    }
    const file = await orFailure(Deno.open(path), failure);
    return new ImageFile(file, (await file.stat()).size);
  }

  async read(offset: number, length: number): Promise<Bytes> {
    await this.#file.seek(offset, Deno.SeekMode.Start);
    const buffer = new Uint8Array(Math.min(length, Math.max(0, this.bytes - offset)));
    for (let filled = 0; filled < buffer.length;) {
      const read = await this.#file.read(buffer.subarray(filled));
      if (read === null) return buffer.slice(0, filled);
      filled += read;
    }
    return buffer;
  }

  /** All its bytes in order. Ends early if the file has become shorter. */
  async *chunks(): AsyncGenerator<Bytes> {
    for (let offset = 0; offset < this.bytes;) {
      const chunk = await this.read(offset, CHUNK_BYTES);
      if (chunk.length === 0) return;
      yield chunk;
      offset += chunk.length;
    }
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }
}
