// SPDX-License-Identifier: GPL-2.0-or-later
import { cutOff, type Qcow2Header, Unusable } from "./image_header.ts";

/** A file that is read in any order. */
export interface RandomAccess {
  readonly bytes: number;
  /** So many bytes from there; fewer at the end. */
  read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>>;
}

/** An entry of a table, without what no 32 bits hold. */
interface Entry {
  readonly high: number;
  readonly low: number;
}

const COMPRESSED = 0x4000_0000; // in the high half
const OFFSET_HIGH = 0x00ff_ffff;
const OFFSET_LOW = 0xffff_fe00;
const READS_AS_ZEROS = 1;
const SECTOR_BYTES = 512;

/**
 * Throws {@linkcode Unusable} if the image's tables refer to what is not in the file. QEMU reads zeros there,
 * so that a machine would boot with half a disk. Reads all L1 and L2 tables: 1/8192 of the data.
 */
export async function checkTables(file: RandomAccess, header: Qcow2Header): Promise<void> {
  const { l1Offset, l1Entries, clusterBits } = header;
  const clusterBytes = 2 ** clusterBits;
  const l1 = viewOf(await file.read(l1Offset, l1Entries * 8));
  const seen = new Set<number>();
  for (let index = 0; index < l1Entries; index++) {
    const offset = offsetOf(entryAt(l1, index * 8));
    if (offset === 0) continue;
    if (offset % clusterBytes !== 0 || seen.has(offset)) {
      throw new Unusable("has a broken L1 table", "Run qemu-img check on it, or fetch it again");
    }
    if (offset + clusterBytes > file.bytes) throw cutOff(file.bytes);
    seen.add(offset);
    const l2 = viewOf(await file.read(offset, clusterBytes));
    checkL2Table(l2, index, { header, fileBytes: file.bytes });
  }
}

function checkL2Table(
  l2: DataView,
  l1Index: number,
  { header, fileBytes }: { readonly header: Qcow2Header; readonly fileBytes: number },
): void {
  const { clusterBits, extendedL2, virtualBytes } = header;
  const clusterBytes = 2 ** clusterBits;
  const entryBytes = extendedL2 ? 16 : 8;
  const entries = clusterBytes / entryBytes;
  for (let index = 0; index < entries; index++) {
    const at = index * entryBytes;
    const entry = entryAt(l2, at);
    if (entry.high === 0 && entry.low === 0) continue;
    const guestOffset = (l1Index * entries + index) * clusterBytes;
    // Of the last cluster, only what the disk has needs to be there.
    const neededBytes = Math.min(clusterBytes, virtualBytes - guestOffset);
    const isRead = extendedL2 ? entryAt(l2, at + 8).low !== 0 : (entry.low & READS_AS_ZEROS) === 0;
    const end = (entry.high & COMPRESSED) !== 0
      ? compressedEnd(entry, clusterBits)
      : isRead && offsetOf(entry) !== 0
      ? offsetOf(entry) + neededBytes
      : 0;
    if (end > fileBytes) throw cutOff(fileBytes);
  }
}

function viewOf(bytes: Uint8Array<ArrayBuffer>): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** The entry there; none beyond the end of what could be read. */
function entryAt(table: DataView, at: number): Entry {
  if (at + 8 > table.byteLength) return { high: 0, low: 0 };
  return { high: table.getUint32(at), low: table.getUint32(at + 4) };
}

function offsetOf({ high, low }: Entry): number {
  return (high & OFFSET_HIGH) * 2 ** 32 + ((low & OFFSET_LOW) >>> 0);
}

/** Up to where compressed data are at least, in its last sector. */
function compressedEnd({ high, low }: Entry, clusterBits: number): number {
  const offsetBits = 62 - (clusterBits - 8) - 32; // of the high half
  const offset = (high & (2 ** offsetBits - 1)) * 2 ** 32 + low;
  const moreSectors = (high >>> offsetBits) & (2 ** (clusterBits - 8) - 1);
  if (moreSectors === 0) return offset + 1;
  return (Math.floor(offset / SECTOR_BYTES) + moreSectors) * SECTOR_BYTES + 1;
}
