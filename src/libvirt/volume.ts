// SPDX-License-Identifier: GPL-2.0-or-later
import type { Pointer } from "../../ffi/libvirt.ts";
import { CHUNK_BYTES, type Connection } from "./connection.ts";
import { orNull, VIR_ERR } from "./error.ts";

/** A handle of a storage volume. Whoever gets it disposes of it, which leaves the volume as it is. */
export class Volume implements Disposable {
  readonly name: string;
  readonly #connection: Connection;
  /** For the pool alone, which copies it. */
  readonly pointer: Pointer<"virStorageVol">;

  constructor(connection: Connection, pointer: Pointer<"virStorageVol">, name: string) {
    this.#connection = connection;
    this.pointer = pointer;
    this.name = name;
  }

  /** Where it is on the hypervisor's host. */
  path(): Promise<string> {
    return this.#connection.callForString("virStorageVolGetPath", this.pointer);
  }

  /** Its XML: format, capacity, backing store. */
  xml(): Promise<string> {
    return this.#connection.callForString("virStorageVolGetXMLDesc", this.pointer, 0);
  }

  /** Its size as its readers see it, in bytes, looked up afresh. */
  async capacityBytes(): Promise<number> {
    return Number((await this.#info())[1]);
  }

  /** What it takes of the pool, in bytes, looked up afresh. */
  async allocationBytes(): Promise<number> {
    return Number((await this.#info())[2]);
  }

  /** virStorageVolInfo (libvirt-storage.h): type at 0, capacity at 8, allocation at 16. */
  async #info(): Promise<BigUint64Array> {
    const info = new BigUint64Array(3);
    await this.#connection.call("virStorageVolGetInfo", this.pointer, info);
    return info;
  }

  /** Deletes it. Resolves to whether it was there: of many who delete it, one hears that. */
  async delete(): Promise<boolean> {
    const deletion = this.#connection.call("virStorageVolDelete", this.pointer, 0);
    return await orNull(VIR_ERR.NO_STORAGE_VOL, deletion) !== null;
  }

  /** Writes these bytes at its beginning. */
  upload(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    const connection = this.#connection;
    const length = BigInt(bytes.length);
    return connection.withStream(async (stream) => {
      await connection.call("virStorageVolUpload", this.pointer, stream, 0n, length, 0);
      for (let sent = 0; sent < bytes.length;) {
        const chunk = bytes.subarray(sent, sent + CHUNK_BYTES);
        sent += await connection.call("virStreamSend", stream, chunk, BigInt(chunk.length));
      }
    });
  }

  /** Reads as many bytes from this offset, or to its end. */
  download(offset: number, bytes?: number): Promise<Uint8Array<ArrayBuffer>> {
    const connection = this.#connection;
    return connection.withStream(async (stream) => {
      const start = BigInt(offset);
      const length = BigInt(bytes ?? 0); // 0 is all the rest
      await connection.call("virStorageVolDownload", this.pointer, stream, start, length, 0);
      return await connection.receiveAll(stream);
    });
  }

  [Symbol.dispose](): void {
    this.#connection.release("virStorageVolFree", this.pointer);
  }
}
