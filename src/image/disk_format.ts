// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { isQcow, MOST_HEADER_BYTES, readQcow2Header, Unusable } from "./image_header.ts";
import { lookAlike } from "./look_alike.ts";
import { checkTables, type RandomAccess } from "./qcow2_tables.ts";

/** What kind of disk an image has. */
export interface DiskFormat {
  readonly format: "qcow2" | "raw";
  /** The size of the disk that a guest sees. */
  readonly virtualBytes: number;
}

const SECTOR_BYTES = 512;

/**
 * What kind of disk the file has, which messages call `name`. Throws SystemFailure if it is none that can
 * become a template, or not whole, as far as the file itself tells.
 */
export async function readDiskFormat(
  file: RandomAccess,
  { name, mostVirtualBytes }: { readonly name: string; readonly mostVirtualBytes: number },
): Promise<DiskFormat> {
  try {
    const start = await file.read(0, MOST_HEADER_BYTES);
    const disk = isQcow(start) ? await readQcow2(file, start) : readRaw(file, start);
    if (disk.virtualBytes <= mostVirtualBytes) return disk;
    throw new Unusable(
      `has a disk of ${disk.virtualBytes} bytes, more than the ${mostVirtualBytes} that are allowed`,
      "Use an image with a smaller disk, or allow a larger one",
    );
  } catch (error) {
    if (!(error instanceof Unusable)) throw error;
    throw new SystemFailure({ what: `The image ${name} ${error.message}`, advice: error.advice });
  }
}

async function readQcow2(file: RandomAccess, start: Uint8Array<ArrayBuffer>): Promise<DiskFormat> {
  const header = readQcow2Header(start, file.bytes);
  await checkTables(file, header);
  return { format: "qcow2", virtualBytes: header.virtualBytes };
}

/** A raw image says nothing about itself, so it has to have a partition table. */
function readRaw(file: RandomAccess, start: Uint8Array<ArrayBuffer>): DiskFormat {
  const end = endOfGpt(start) ?? endOfMbr(start);
  const other = lookAlike(start, { hasPartitions: end !== null });
  if (other !== null) throw other;
  if (end === null) {
    throw new Unusable(
      "is no disk image: it is not qcow2, and has no partition table as a raw one has",
      "Check that it is the image, in the format qcow2 or raw",
    );
  }
  if (end > file.bytes) {
    throw new Unusable(
      `is cut off: its partitions need ${end} bytes, and it has ${file.bytes}`,
      "Fetch it again",
    );
  }
  if (file.bytes % SECTOR_BYTES !== 0) {
    throw new Unusable(`is cut off: ${file.bytes} bytes are no whole sectors`, "Fetch it again");
  }
  return { format: "raw", virtualBytes: file.bytes };
}

function viewOf(bytes: Uint8Array<ArrayBuffer>): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

const GPT = 0x4546492050415254n; // "EFI PART"

/** Where a disk with GPT ends, by its first header; null if there is none. UEFI's specification, 5.3.2. */
function endOfGpt(start: Uint8Array<ArrayBuffer>): number | null {
  const view = viewOf(start);
  for (const sectorBytes of [SECTOR_BYTES, 4096]) {
    if (start.length < sectorBytes + 92 || view.getBigUint64(sectorBytes) !== GPT) continue;
    const lastSector = view.getBigUint64(sectorBytes + 32, true); // with the second header
    return (Number(lastSector) + 1) * sectorBytes;
  }
  return null;
}

const SIGNATURE = 0xaa55;
const ENTRIES_AT = [446, 462, 478, 494];
const STATUS: readonly number[] = [0, 0x80];

/** Where the last partition of an MBR ends; null if there is none. */
function endOfMbr(start: Uint8Array<ArrayBuffer>): number | null {
  const view = viewOf(start);
  if (start.length < SECTOR_BYTES || view.getUint16(510, true) !== SIGNATURE) return null;
  // The boot sector of a file system has the same signature.
  if (!ENTRIES_AT.every((at) => STATUS.includes(view.getUint8(at)))) return null;
  const ends = ENTRIES_AT.filter((at) => view.getUint8(at + 4) !== 0) // its type
    .map((at) => view.getUint32(at + 8, true) + view.getUint32(at + 12, true));
  return ends.length === 0 ? null : Math.max(...ends) * SECTOR_BYTES;
}
