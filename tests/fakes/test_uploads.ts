// SPDX-License-Identifier: GPL-2.0-or-later
import { borrowedString } from "../../ffi/memory.ts";
import type { CallName, Connection } from "../../src/libvirt/connection.ts";
import { LibvirtError, VIR_ERR } from "../../src/libvirt/error.ts";

/** What a test does while something is uploaded. */
export interface UploadOptions {
  /** Called before each part is taken, with the volume's name; what it throws is the call's error. */
  readonly onSend?: (volume: string) => void | Promise<void>;
}

/** A stream that has an end in a volume. */
interface OpenStream {
  readonly volume: string;
  offset: number;
  readonly parts: [at: number, bytes: Uint8Array][];
}

/**
 * Has libvirt's test driver keep what is uploaded and give it again: it has volumes, but no streams for
 * them. Gives the volumes' content by their names.
 */
export function keepUploads(
  connection: Connection,
  { onSend }: UploadOptions = {},
): Map<string, Uint8Array> {
  const contents = new Map<string, Uint8Array>();
  const streams = new Map<bigint, OpenStream>();
  const { call } = connection;
  const keyOf = (pointer: unknown): bigint =>
    Deno.UnsafePointer.value(pointer as Deno.PointerObject);
  const nameOf = (volume: unknown): string =>
    borrowedString(connection.local.virStorageVolGetName(volume as never)) ?? "";
  const streamOf = (pointer: unknown): OpenStream => {
    const stream = streams.get(keyOf(pointer));
    if (stream === undefined) throw new Error("the stream has no other end");
    return stream;
  };
  const known: Partial<Record<CallName, (...args: unknown[]) => unknown>> = {
    virStorageVolUpload: (volume, stream, offset) => {
      streams.set(keyOf(stream), { volume: nameOf(volume), offset: Number(offset), parts: [] });
      return 0;
    },
    virStorageVolDownload: (volume, stream, offset) => {
      const name = nameOf(volume);
      if (!contents.has(name)) {
        throw new LibvirtError("virStorageVolDownload", "gone", { code: VIR_ERR.NO_STORAGE_VOL });
      }
      streams.set(keyOf(stream), { volume: name, offset: Number(offset), parts: [] });
      return 0;
    },
    virStreamSend: async (pointer, bytes) => {
      const stream = streamOf(pointer);
      await onSend?.(stream.volume);
      const sent = bytes as Uint8Array;
      stream.parts.push([stream.offset, sent.slice()]);
      stream.offset += sent.length;
      return sent.length;
    },
    virStreamSendHole: (pointer, length) => {
      streamOf(pointer).offset += Number(length);
      return 0;
    },
    virStreamRecv: (pointer, bytes) => {
      const stream = streamOf(pointer);
      const rest = (contents.get(stream.volume) ?? new Uint8Array()).subarray(stream.offset);
      const part = rest.subarray(0, (bytes as Uint8Array).length);
      (bytes as Uint8Array).set(part);
      stream.offset += part.length;
      return part.length;
    },
    virStreamFinish: (pointer) => {
      const { volume, offset, parts } = streamOf(pointer);
      streams.delete(keyOf(pointer));
      if (parts.length === 0 && contents.has(volume)) return 0; // it was read
      const all = new Uint8Array(offset);
      all.set((contents.get(volume) ?? new Uint8Array()).subarray(0, offset));
      for (const [at, bytes] of parts) all.set(bytes, at);
      contents.set(volume, all);
      return 0;
    },
    virStreamAbort: (pointer) => {
      streams.delete(keyOf(pointer));
      return 0;
    },
  };
  connection.call = (async (...[name, ...args]: Parameters<typeof call>) => {
    const answer = known[name];
    if (answer !== undefined) return await answer(...args);
    if (name === "virStorageVolDelete") contents.delete(nameOf(args[0]));
    return await call.apply(connection, [name, ...args] as Parameters<typeof call>);
  }) as typeof call;
  return contents;
}
