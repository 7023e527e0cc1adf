// SPDX-License-Identifier: GPL-2.0-or-later
import { orNull, VIR_ERR } from "./error.ts";
import { Handle } from "./handle.ts";
import { type SendOptions, Stream } from "./stream.ts";

// virStorageVolUploadFlags.
export const VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM = 1; // the stream may have holes

/**
 * An upload waits after so many bytes until they are written. The daemon takes them as fast as they come,
 * and keeps in memory what its disk has not taken yet (virFDStreamMsgQueuePush in src/util/virfdstream.c).
 */
const WINDOW_BYTES = 256 * 1024 ** 2;

/** A handle of a storage volume. The caller disposes of it, which leaves the volume as it is. */
export class Volume extends Handle<"virStorageVol"> {
  path(): Promise<string> {
    return this.callForString("virStorageVolGetPath");
  }

  xml(): Promise<string> {
    return this.callForString("virStorageVolGetXMLDesc", 0);
  }

  /** Its size as its readers see it, in bytes, looked up afresh. */
  async capacityBytes(): Promise<number> {
    return Number((await this.#info())[1]);
  }

  /** The space that it takes in the pool, in bytes, looked up afresh. */
  async allocationBytes(): Promise<number> {
    return Number((await this.#info())[2]);
  }

  /** virStorageVolInfo (libvirt-storage.h): type at 0, capacity at 8, allocation at 16. */
  async #info(): Promise<BigUint64Array> {
    const info = new BigUint64Array(3);
    await this.call("virStorageVolGetInfo", info);
    return info;
  }

  /** Deletes it. Resolves to whether it existed: of many who delete it, one gets true. */
  async delete(): Promise<boolean> {
    const deletion = this.call("virStorageVolDelete", 0);
    return await orNull(VIR_ERR.NO_STORAGE_VOL, deletion) !== null;
  }

  upload(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    const length = BigInt(bytes.length);
    return Stream.with(this.connection, async (stream) => {
      await stream.lend((pointer) => this.call("virStorageVolUpload", pointer, 0n, length, 0));
      await stream.sendAll(bytes);
    });
  }

  /**
   * Writes all that comes from the source, and gives how many bytes that were. Long runs of zeros become
   * holes. Each part must be taken within the time of a call; all may take any time. An abort by the signal
   * rejects with its reason. In any case, nothing reads the source any more in the end.
   */
  async uploadFrom(
    source: ReadableStream<Uint8Array<ArrayBuffer>>,
    options: SendOptions,
  ): Promise<number> {
    const reader = source.getReader();
    const cancel = (): void => void reader.cancel().catch(() => {}); // which ends a read that waits
    options.signal.addEventListener("abort", cancel);
    try {
      let offset = 0;
      for (let isEnd = false; !isEnd;) {
        const window = await this.#uploadWindow(reader, offset, options);
        offset += window.sent;
        isEnd = window.isEnd;
      }
      return offset;
    } finally {
      options.signal.removeEventListener("abort", cancel);
      cancel();
    }
  }

  #uploadWindow(
    source: ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>>,
    offset: number,
    { signal, onBytes }: SendOptions,
  ): ReturnType<Stream["sendSparse"]> {
    return Stream.with(this.connection, async (stream) => {
      const at = BigInt(offset);
      const flags = VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM;
      await stream.lend((it) => this.call("virStorageVolUpload", it, at, 0n, flags));
      return await stream.sendSparse(source, WINDOW_BYTES, {
        signal,
        onBytes: (bytes) => onBytes?.(offset + bytes),
      });
    });
  }

  /** Reads as many bytes from this offset, or to its end. */
  download(offset: number, bytes?: number): Promise<Uint8Array<ArrayBuffer>> {
    return Stream.with(this.connection, async (stream) => {
      const start = BigInt(offset);
      const length = BigInt(bytes ?? 0); // 0 is all the rest
      await stream.lend((pointer) => this.call("virStorageVolDownload", pointer, start, length, 0));
      return await stream.receiveAll();
    });
  }
}
