// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * The header of a qcow2 image, by docs/interop/qcow2.rst of QEMU. Whoever wrote it may want something of
 * the host: a backing file or a data file is a file of the host's that the guest would read.
 */
export interface Qcow2Header {
  readonly version: 2 | 3;
  readonly virtualBytes: number;
  readonly clusterBits: number;
  /** An entry of an L2 table has 16 bytes instead of 8. */
  readonly extendedL2: boolean;
  readonly l1Entries: number;
  readonly l1Offset: number;
}

/** Why an image is refused, and what to do about it. */
export class Unusable extends Error {
  readonly advice: string;

  /** `why` follows the image's name: "has a backing file". */
  constructor(why: string, advice: string) {
    super(why);
    this.advice = advice;
  }
}

/** What {@linkcode readQcow2Header} has to see, at most: the largest first cluster. */
export const MOST_HEADER_BYTES = 2 * 1024 ** 2;

const MAGIC = 0x514649fb; // "QFI\xfb"
const V2_BYTES = 72;
const V3_BYTES = 104;
/** QEMU's own bounds. */
const CLUSTER_BITS = { least: 9, most: 21, leastExtended: 14 };
const MOST_L1_BYTES = 32 * 1024 ** 2;
const MOST_REFCOUNT_TABLE_BYTES = 8 * 1024 ** 2;
const MOST_REFCOUNT_ORDER = 6;

/** Bits of the incompatible features. */
const FEATURE = { dirty: 1, corrupt: 2, dataFile: 4, compressionType: 8, extendedL2: 16 };
const DATA_FILE_EXTENSION = 0x44415441;
const COMPRESSION_TYPES: readonly number[] = [0, 1]; // deflate, zstd

const CONVERT =
  "Run qemu-img convert -O qcow2 IMAGE NEW.qcow2 where it was made, and add NEW.qcow2";
const FETCH_AGAIN = "Fetch it again: it may be cut off. Else run qemu-img check on it";
const NEWER = "Run qemu-img convert -O qcow2 IMAGE NEW.qcow2 with QEMU, and add NEW.qcow2";

/** Whether these bytes begin like a qcow2 image, or an image of the format before. */
export function isQcow(start: Uint8Array<ArrayBuffer>): boolean {
  return start.length >= 8 && viewOf(start).getUint32(0) === MAGIC;
}

function viewOf(bytes: Uint8Array<ArrayBuffer>): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function broken(what: string): Unusable {
  return new Unusable(`has a broken qcow2 header: ${what}`, FETCH_AGAIN);
}

/** The number of 64 bits there; Infinity if it is too large for a file's length. */
function bigNumber(view: DataView, at: number): number {
  const number = view.getBigUint64(at);
  return number > BigInt(Number.MAX_SAFE_INTEGER) ? Infinity : Number(number);
}

/**
 * Reads the header of a file of this length, of which these are the first bytes, and all of them or at
 * least {@linkcode MOST_HEADER_BYTES}. Throws {@linkcode Unusable} for what no template may be.
 */
export function readQcow2Header(start: Uint8Array<ArrayBuffer>, fileBytes: number): Qcow2Header {
  const view = viewOf(start);
  const version = view.getUint32(4);
  if (version === 1) throw new Unusable("is in the format qcow, which is out of use", CONVERT);
  if (version !== 2 && version !== 3) throw broken(`its version is ${version}`);
  if (start.length < (version === 2 ? V2_BYTES : V3_BYTES)) throw broken("it is cut off");
  refuseOtherFiles(view);
  const features = version === 2 ? 0 : readFeatures(view);
  const extendedL2 = (features & FEATURE.extendedL2) !== 0;
  const clusterBits = readClusterBits(view, extendedL2);
  if (version === 3) checkVersion3(view, { features, clusterBytes: 2 ** clusterBits });
  const tables = readTables(view, { clusterBits, fileBytes });
  const virtualBytes = bigNumber(view, 24);
  if (virtualBytes === 0) throw broken("its disk has no bytes");
  const l2Entries = 2 ** clusterBits / (extendedL2 ? 16 : 8);
  const neededEntries = Math.ceil(virtualBytes / 2 ** clusterBits / l2Entries);
  if (tables.l1Entries < neededEntries) throw broken("its L1 table is too small for its disk");
  return { version, virtualBytes, clusterBits, extendedL2, ...tables };
}

/** Throws Unusable for an image that consists of several files, or needs a key. */
function refuseOtherFiles(view: DataView): void {
  if (view.getBigUint64(8) !== 0n) {
    throw new Unusable("has a backing file, which is not part of it", CONVERT);
  }
  if (view.getUint32(32) !== 0) throw new Unusable("is encrypted", CONVERT);
  if (view.getUint32(60) !== 0) {
    throw new Unusable("has snapshots, which no machine needs", CONVERT);
  }
}

function readFeatures(view: DataView): number {
  const features = view.getBigUint64(72);
  const known = Object.values(FEATURE).reduce((all, bit) => all | bit, 0);
  const has = (bit: number): boolean => (features & BigInt(bit)) !== 0n;
  if (has(FEATURE.dataFile)) {
    throw new Unusable("has its data in another file, which is not part of it", CONVERT);
  }
  if (has(FEATURE.corrupt)) throw new Unusable("is marked as corrupt", FETCH_AGAIN);
  if (has(FEATURE.dirty)) {
    throw new Unusable("was not closed, or is in use", "Run qemu-img check -r all on it");
  }
  if ((features & ~BigInt(known)) !== 0n) {
    throw new Unusable(`needs unknown features of QEMU (0x${features.toString(16)})`, NEWER);
  }
  return Number(features);
}

function readClusterBits(view: DataView, extendedL2: boolean): number {
  const clusterBits = view.getUint32(20);
  const least = extendedL2 ? CLUSTER_BITS.leastExtended : CLUSTER_BITS.least;
  if (clusterBits < least || clusterBits > CLUSTER_BITS.most) {
    throw broken(`its clusters have 2^${clusterBits} bytes`);
  }
  return clusterBits;
}

/** Checks the fields that version 2 does not have. */
function checkVersion3(
  view: DataView,
  { features, clusterBytes }: { readonly features: number; readonly clusterBytes: number },
): void {
  const headerBytes = view.getUint32(100);
  if (headerBytes < V3_BYTES || headerBytes % 8 !== 0 || headerBytes > clusterBytes) {
    throw broken(`its length is ${headerBytes}`);
  }
  if (view.getUint32(96) > MOST_REFCOUNT_ORDER) throw broken("its reference counts are too wide");
  const type = headerBytes > V3_BYTES && view.byteLength > V3_BYTES ? view.getUint8(V3_BYTES) : 0;
  const isOther = (features & FEATURE.compressionType) !== 0;
  if (isOther !== (type !== 0)) throw broken("it contradicts itself about compression");
  if (!COMPRESSION_TYPES.includes(type)) {
    throw new Unusable(`has an unknown compression (${type})`, NEWER);
  }
  checkExtensions(view, headerBytes, clusterBytes);
}

/** Looks at the names behind the header, up to the end of its cluster. */
function checkExtensions(view: DataView, headerBytes: number, clusterBytes: number): void {
  const end = Math.min(view.byteLength, clusterBytes);
  for (let at = headerBytes; at + 8 <= end;) {
    const type = view.getUint32(at);
    const length = view.getUint32(at + 4);
    if (type === 0) return;
    if (type === DATA_FILE_EXTENSION) {
      throw new Unusable("names another file for its data, which is not part of it", CONVERT);
    }
    at += 8 + Math.ceil(length / 8) * 8;
    if (at > end) throw broken("an extension does not fit into it");
  }
}

/** Where the L1 table is. Throws Unusable if one of the tables that the header names is not in the file. */
function readTables(
  view: DataView,
  { clusterBits, fileBytes }: { readonly clusterBits: number; readonly fileBytes: number },
): { readonly l1Entries: number; readonly l1Offset: number } {
  const clusterBytes = 2 ** clusterBits;
  const l1Entries = view.getUint32(36);
  const l1Offset = bigNumber(view, 40);
  const refcountOffset = bigNumber(view, 48);
  const refcountBytes = view.getUint32(56) * clusterBytes;
  const tables = [
    ["L1 table", l1Offset, l1Entries * 8, MOST_L1_BYTES],
    ["refcount table", refcountOffset, refcountBytes, MOST_REFCOUNT_TABLE_BYTES],
  ] as const;
  for (const [name, offset, bytes, mostBytes] of tables) {
    if (bytes === 0 || bytes > mostBytes) throw broken(`its ${name} has ${bytes} bytes`);
    if (offset % clusterBytes !== 0 || offset < clusterBytes) {
      throw broken(`its ${name} is not where one can be`);
    }
    if (offset + bytes > fileBytes) throw cutOff(fileBytes);
  }
  return { l1Entries, l1Offset };
}

/** The image refers to what is beyond its end. */
export function cutOff(fileBytes: number): Unusable {
  return new Unusable(`is cut off: it refers to more than its ${fileBytes} bytes`, FETCH_AGAIN);
}
