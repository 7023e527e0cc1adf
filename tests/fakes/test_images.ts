// SPDX-License-Identifier: GPL-2.0-or-later

const CLUSTER = 65536;
const DISK_BYTES = 10 * 1024 ** 2;

/**
 * A qcow2 image of 10 MiB with two clusters of data: its header, refcount table, refcount block, L1 table, L2
 * table and data, each in a cluster.
 */
export function qcow2Image(
  { version = 3, extendedL2 = false }: { version?: number; extendedL2?: boolean } = {},
): Uint8Array<ArrayBuffer> {
  const image = new Uint8Array(7 * CLUSTER);
  const view = new DataView(image.buffer);
  const set32 = (at: number, value: number) => view.setUint32(at, value);
  const set64 = (at: number, value: number) => view.setBigUint64(at, BigInt(value));
  set32(0, 0x514649fb);
  set32(4, version);
  set32(20, 16); // the bits of a cluster's length
  set64(24, DISK_BYTES);
  set32(36, 1); // entries of the L1 table
  set64(40, 3 * CLUSTER);
  set64(48, CLUSTER);
  set32(56, 1); // clusters of the refcount table
  if (version === 3) {
    set64(72, extendedL2 ? 16 : 0);
    set32(96, 4); // the order of the refcounts
    set32(100, 104);
  }
  set64(CLUSTER, 2 * CLUSTER);
  for (let cluster = 0; cluster < 7; cluster++) view.setUint16(2 * CLUSTER + 2 * cluster, 1);
  set64(3 * CLUSTER, 4 * CLUSTER);
  const entryBytes = extendedL2 ? 16 : 8;
  for (const i of [0, 1]) {
    set64(4 * CLUSTER + i * entryBytes, (5 + i) * CLUSTER);
    if (extendedL2) set32(4 * CLUSTER + i * entryBytes + 12, 0xffffffff);
  }
  image.fill(7, 5 * CLUSTER);
  return image;
}

/** A raw disk with one partition, up to its end. */
export function mbrDisk(bytes = 1024 ** 2): Uint8Array<ArrayBuffer> {
  const disk = new Uint8Array(bytes);
  const view = new DataView(disk.buffer);
  view.setUint8(446, 0x80);
  view.setUint8(446 + 4, 0x83);
  view.setUint32(446 + 8, 8, true);
  view.setUint32(446 + 12, bytes / 512 - 8, true);
  view.setUint16(510, 0xaa55, true);
  return disk;
}

/** A raw disk with a GPT, whose second header is its last sector. */
export function gptDisk(sectorBytes: number): Uint8Array<ArrayBuffer> {
  const disk = new Uint8Array(1024 ** 2);
  const view = new DataView(disk.buffer);
  disk.set(new TextEncoder().encode("EFI PART"), sectorBytes);
  view.setBigUint64(sectorBytes + 32, BigInt(disk.length / sectorBytes - 1), true);
  return disk;
}
