// SPDX-License-Identifier: GPL-2.0-or-later

// Numbers in comments are sections of ECMA-119, 2nd edition, which is ISO 9660:
// https://ecma-international.org/publications-and-standards/standards/ecma-119/
// Joliet is a second directory of the same files, with names in UCS-2:
// https://pismotec.com/cfs/jolspec.html

const SECTOR = 2048; // 6.1.2
const DESCRIPTORS = 16; // The sectors before are the system's (6.2.1).
const ROOT_RECORD = 34; // The length of the root's record (9.1).
type Bytes = Uint8Array<ArrayBuffer>;

/** Data from the start of a sector. */
type Extent = { readonly sector: number; readonly data: Uint8Array };
type Files = ReadonlyMap<string, Extent>;

// The directories differ in type, character set (8.5.6) and names. Joliet's have no version, which
// some readers would show.
const PRIMARY = { type: 1, escape: "", nameOf: primaryName, encode: ascii };
const JOLIET = { type: 2, escape: "%/E", nameOf: (name: string) => name, encode: ucs2 };
type Dialect = typeof PRIMARY;

/**
 * A CD-ROM image with these files in its root directory. Readers of Joliet (Linux, the BSDs, Windows) see
 * each name as it is, others see `USER_DATA` for `user-data`. Throws TypeError for a bad label or name, and
 * for two names that are equal without Joliet.
 */
export function iso9660Image(label: string, files: ReadonlyMap<string, Uint8Array>): Bytes {
  // Joliet's limits. The standard has no lower case in labels (8.4.6), but all systems read it.
  if (!/^\w{1,16}$/.test(label)) throw new TypeError(`Bad volume label "${label}"`);
  const badName = [...files.keys()].find((name) => !/^[\w.-]{1,64}$/.test(name));
  if (badName !== undefined) throw new TypeError(`Bad file name "${badName}"`);

  const extents: Extent[] = [];
  let end = DESCRIPTORS + 3;
  const place = (data: Uint8Array): Extent => {
    const extent = { sector: end, data };
    extents.push(extent);
    end += Math.max(1, Math.ceil(data.length / SECTOR));
    return extent;
  };

  const placed = new Map([...files.keys()].sort().map((name) => [name, place(files.get(name)!)]));
  const descriptors = [PRIMARY, JOLIET].map((dialect) => {
    const root = place(rootDirectory(end, placed, dialect));
    const tables = [true, false].map((littleEndian) => place(pathTable(root, littleEndian)));
    return volumeDescriptor(label, root, tables, dialect);
  });
  descriptors.forEach((descriptor) => setBoth(descriptor, 80, 4, end)); // 8.4.8
  descriptors.push(descriptorOfType(255)); // The terminator (8.3).
  descriptors.forEach((data, index) => extents.push({ sector: DESCRIPTORS + index, data }));
  const image = new Uint8Array(end * SECTOR);
  for (const { sector, data } of extents) image.set(data, sector * SECTOR);
  return image;
}

/** At most 30 of A-Z, 0-9 and _, then an empty extension and a version (7.5.1). */
function primaryName(name: string): string {
  return `${name.toUpperCase().replaceAll(/[^A-Z0-9]/g, "_").slice(0, 30)}.;1`;
}

/** The directory (6.8) that will start at this sector. */
function rootDirectory(sector: number, files: Files, dialect: Dialect): Uint8Array {
  const named = new Map([...files].map(([name, file]) => [dialect.nameOf(name), file]));
  if (named.size < files.size) throw new TypeError("Two file names are alike without Joliet");

  const directory: number[] = Array(2 * ROOT_RECORD).fill(0);
  const endSector = () => directory.push(...Array(-directory.length & (SECTOR - 1)).fill(0));
  for (const [name, { sector, data }] of [...named].sort(([a], [b]) => a < b ? -1 : 1)) { // 9.3
    const record = directoryRecord(dialect.encode(name), sector, data.length);
    // No record crosses the end of a sector (6.8.1.1).
    if (directory.length % SECTOR + record.length > SECTOR) endSector();
    directory.push(...record);
  }
  endSector();

  const self = directoryRecord(Uint8Array.of(0), sector, directory.length);
  self[25] = 2; // It is a directory (9.1.6).
  // Its parent, with the name 1, is itself too (6.8.2.2).
  return Uint8Array.from([...self, ...self.with(33, 1), ...directory.slice(2 * ROOT_RECORD)]);
}

/** A file within a directory (9.1), of 1970: without a date (9.1.5), Linux shows one in 2036. */
function directoryRecord(name: Uint8Array, sector: number, size: number): Uint8Array {
  const record = new Uint8Array(2 * Math.ceil((33 + name.length) / 2));
  record[0] = record.length;
  setBoth(record, 2, 4, sector);
  setBoth(record, 10, 4, size);
  record.set([70, 1, 1], 18);
  setBoth(record, 28, 2, 1); // on the first volume of the set
  record[32] = name.length;
  record.set(name, 33);
  return record;
}

/** All directories (9.4): the root, its own parent. */
function pathTable(root: Extent, littleEndian: boolean): Uint8Array {
  const table = new DataView(new ArrayBuffer(10));
  table.setUint8(0, 1);
  table.setUint32(2, root.sector, littleEndian);
  table.setUint16(6, 1, littleEndian);
  return new Uint8Array(table.buffer);
}

/** 8.4 and 8.5. Where there is nothing to say are spaces, in dates zeros (8.4.26.1). */
function volumeDescriptor(label: string, root: Extent, tables: Extent[], dialect: Dialect): Bytes {
  const descriptor = descriptorOfType(dialect.type);
  for (const [start, end] of [[8, 72], [190, 702], [702, 739], [739, 776], [776, 813]]) {
    descriptor.set(dialect.encode(" ".repeat(end - start)).subarray(0, end - start), start);
  }
  descriptor.set(dialect.encode(label), 40);
  descriptor.set(ascii(dialect.escape), 88);
  for (const offset of [120, 124]) setBoth(descriptor, offset, 2, 1); // The first volume of one.
  setBoth(descriptor, 128, 2, SECTOR);
  setBoth(descriptor, 132, 4, tables[0].data.length);
  const view = new DataView(descriptor.buffer);
  view.setUint32(140, tables[0].sector, true);
  view.setUint32(148, tables[1].sector);
  descriptor.set(root.data.subarray(0, ROOT_RECORD), 156);
  for (const date of [813, 830, 847, 864]) descriptor.fill(0x30, date, date + 16);
  descriptor[881] = 1; // The version of the structure (8.4.30).
  return descriptor;
}

function descriptorOfType(type: number): Bytes {
  const descriptor = new Uint8Array(SECTOR);
  descriptor.set([type, ...ascii("CD001"), 1]); // 8.1
  return descriptor;
}

/** Both byte orders, one after the other (7.2.3, 7.3.3). */
function setBoth(bytes: Uint8Array, offset: number, width: 2 | 4, value: number): void {
  for (let index = 0; index < width; index++) {
    bytes[offset + index] = bytes[offset + 2 * width - 1 - index] = value >>> 8 * index;
  }
}

function ascii(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

/** Of ASCII. */
function ucs2(text: string): Uint8Array {
  return Uint8Array.from([...ascii(text)].flatMap((byte) => [0, byte]));
}
