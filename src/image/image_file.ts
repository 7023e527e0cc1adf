// SPDX-License-Identifier: GPL-2.0-or-later
import type { RandomAccess } from "./qcow2_tables.ts";

/** A local file with an image. Whoever opens it disposes of it. */
export class ImageFile implements RandomAccess, AsyncDisposable {
  readonly bytes: number;
  readonly #file: Deno.FsFile;

  constructor(file: Deno.FsFile, bytes: number) {
    this.#file = file;
    this.bytes = bytes;
  }

  async read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    await this.#file.seek(offset, Deno.SeekMode.Start);
    const buffer = new Uint8Array(Math.min(length, Math.max(0, this.bytes - offset)));
    for (let filled = 0; filled < buffer.length;) {
      const read = await this.#file.read(buffer.subarray(filled));
      if (read === null) return buffer.slice(0, filled);
      filled += read;
    }
    return buffer;
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#file.close();
    return Promise.resolve();
  }
}

export async function openImageFile(path: string): Promise<ImageFile> {
  const file = await Deno.open(path, { read: true });
  return new ImageFile(file, (await file.stat()).size);
}
