// SPDX-License-Identifier: GPL-2.0-or-later
import { createHash } from "node:crypto";
import { orFailure, SystemFailure } from "../errors.ts";

/** A disk image that is there as a local file, verified. */
export interface LocalImage {
  readonly format: "qcow2" | "raw";
  /** The size of the disk that a guest sees. */
  readonly virtualBytes: number;
  /** The length of the image's file, unpacked. */
  readonly fileBytes: number;
  /** sha256 of what was fetched, as `sha256:<hex>`: the manifest's digest for a registry. */
  readonly digest: string;
  /** Its bytes, unpacked, in order; checked again as they pass: the stream fails if they are not what was promised. */
  open(): ReadableStream<Uint8Array<ArrayBuffer>>;
  [Symbol.asyncDispose](): Promise<void>;
}

const PART_BYTES = 1024 ** 2;
const HEADER_BYTES = 32;
const MAGIC = 0x514649fb; // "QFI\xfb"
const SECTOR_BYTES = 512;

/** Opens the image in a file. Throws SystemFailure. */
export async function openLocalImage(
  path: string,
  { digest: promised, signal }: {
    /** As `sha256:HEX`, or null. */
    readonly digest: string | null;
    readonly signal: AbortSignal;
  },
): Promise<LocalImage> {
  const info = await orFailure(Deno.stat(path), {
    what: `Cannot read the image "${path}"`,
    advice: "Check its name, and that this user may read it",
  });
  if (!info.isFile) throw unusable(path, "is not a file");
  const hash = createHash("sha256");
  let header: Uint8Array<ArrayBuffer> | null = null;
  for await (const part of read(path)) {
    signal.throwIfAborted();
    header ??= part.slice(0, HEADER_BYTES);
    hash.update(part);
  }
  const digest = `sha256:${hash.digest("hex")}`;
  if (promised !== null && digest !== promised) {
    throw unusable(path, `has the digest ${digest}, not ${promised}`);
  }
  const fileBytes = info.size;
  const { format, virtualBytes } = formatOf(path, header ?? new Uint8Array(), fileBytes);
  return {
    ...{ format, virtualBytes, fileBytes, digest },
    open: () => ReadableStream.from(read(path)),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

function formatOf(
  path: string,
  header: Uint8Array<ArrayBuffer>,
  bytes: number,
): Pick<LocalImage, "format" | "virtualBytes"> {
  const view = new DataView(header.buffer);
  if (header.length < HEADER_BYTES || view.getUint32(0) !== MAGIC) {
    if (bytes === 0 || bytes % SECTOR_BYTES !== 0) throw unusable(path, "is no disk image");
    return { format: "raw", virtualBytes: bytes };
  }
  if (view.getBigUint64(8) !== 0n) throw unusable(path, "stands on another file");
  return { format: "qcow2", virtualBytes: Number(view.getBigUint64(24)) };
}

async function* read(path: string): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  using file = await Deno.open(path);
  for (;;) {
    const part = new Uint8Array(PART_BYTES);
    const length = await file.read(part);
    if (length === null) return;
    yield part.subarray(0, length);
  }
}

function unusable(path: string, why: string): SystemFailure {
  return new SystemFailure({
    what: `The image "${path}" ${why}`,
    advice: "Check the file: qemu-img info FILE",
  });
}
