// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import { explain, SystemFailure } from "../../src/errors.ts";
import { type DiskFormat, readDiskFormat } from "../../src/image/disk_format.ts";
import type { RandomAccess } from "../../src/image/qcow2_tables.ts";
import { gptDisk, mbrDisk, qcow2Image } from "../fakes/test_images.ts";

const TIB = 1024 ** 4;

/** The bytes as a file. */
function inMemory(bytes: Uint8Array<ArrayBuffer>): RandomAccess {
  return {
    bytes: bytes.length,
    read: (offset, length) => Promise.resolve(bytes.slice(offset, offset + length)),
  };
}

function formatOf(bytes: Uint8Array<ArrayBuffer>, mostVirtualBytes = TIB): Promise<DiskFormat> {
  return readDiskFormat(inMemory(bytes), { name: '"a.img"', mostVirtualBytes });
}

/** What the image is refused with, as it is printed. */
function refusalOf(bytes: Uint8Array<ArrayBuffer>, mostVirtualBytes = TIB): Promise<string> {
  return formatOf(bytes, mostVirtualBytes).then(() => assert.fail("accepted"), (error) => {
    assert(error instanceof SystemFailure, String(error));
    return explain(error);
  });
}

Deno.test("qcow2 of both versions, and raw with MBR or GPT, are taken", async () => {
  const virtualBytes = 10 * 1024 ** 2;
  for (const version of [2, 3]) {
    const image = qcow2Image({ version });
    assert.deepEqual(await formatOf(image), { format: "qcow2", virtualBytes });
  }
  for (const disk of [mbrDisk(), gptDisk(512), gptDisk(4096)]) {
    assert.deepEqual(await formatOf(disk), { format: "raw", virtualBytes: disk.length });
  }
});

/** A change of a good image's header, where it is and how many bits it has. */
type Change = readonly [at: number, bits: 8 | 32 | 64, value: number];

for (
  const [what, changes, word] of [
    ["has a backing file", [[8, 64, 200], [16, 32, 11]], /has a backing file, .*\n.*qemu-img conv/],
    ["has a backing file whose name is far away", [[8, 64, 2 ** 50]], /has a backing file/],
    ["is encrypted by AES", [[32, 32, 1]], /is encrypted/],
    ["is encrypted by LUKS", [[32, 32, 2]], /is encrypted/],
    ["has snapshots", [[60, 32, 1]], /has snapshots/],
    ["is marked as dirty", [[72, 64, 1]], /was not closed.*\n.*qemu-img check -r all/],
    ["is marked as corrupt", [[72, 64, 2]], /marked as corrupt/],
    ["has a data file", [[72, 64, 4]], /data in another file/],
    ["names a data file", [[104, 32, 0x44415441], [108, 32, 3]], /names another file/],
    ["needs an unknown feature", [[72, 64, 32]], /unknown features of QEMU \(0x20\)/],
    ["needs the last unknown feature", [[72, 64, 2 ** 63]], /unknown features/],
    ["has extended L2 entries in small clusters", [[20, 32, 13], [72, 64, 16]], /2\^13 bytes/],
    ["has tiny clusters", [[20, 32, 8]], /clusters have 2\^8 bytes/],
    ["has huge clusters", [[20, 32, 22]], /clusters have 2\^22 bytes/],
    ["has clusters that no number holds", [[20, 32, 0xffffffff]], /clusters have 2\^4294967295/],
    ["is of a future version", [[4, 32, 4]], /its version is 4/],
    ["is of the format before", [[4, 32, 1]], /the format qcow, which is out of use/],
    ["has a disk of no bytes", [[24, 64, 0]], /its disk has no bytes/],
    ["has a disk of 8 EiB", [[24, 64, 2 ** 63]], /L1 table is too small/],
    ["has a larger disk than its L1 table", [[24, 64, 2 ** 39]], /L1 table is too small/],
    ["has no L1 table", [[36, 32, 0]], /L1 table has 0 bytes/],
    ["has an L1 table of 32 GiB", [[36, 32, 0xffffffff]], /L1 table has 34359738360 bytes/],
    ["has its L1 table in the header", [[40, 64, 0]], /L1 table is not where one can be/],
    ["has its L1 table between clusters", [[40, 64, 65536 + 512]], /not where one can be/],
    ["has its L1 table beyond its end", [[40, 64, 2 ** 40]], /is cut off/],
    ["has its L1 table beyond all files", [[40, 64, 2 ** 63]], /not where one can be|is cut off/],
    ["has no refcount table", [[56, 32, 0]], /refcount table has 0 bytes/],
    ["has a huge refcount table", [[56, 32, 129]], /refcount table has 8454144 bytes/],
    ["has its refcount table beyond its end", [[48, 64, 2 ** 40]], /is cut off/],
    ["has wide refcounts", [[96, 32, 7]], /reference counts are too wide/],
    ["has a short header", [[100, 32, 96]], /its length is 96/],
    ["has an odd header", [[100, 32, 107]], /its length is 107/],
    ["has a long header", [[100, 32, 65536 + 8]], /its length is 65544/],
    ["has an unknown compression", [[72, 64, 8], [100, 32, 112], [104, 8, 9]], /compression \(9\)/],
    ["says nothing of its compression", [[72, 64, 8]], /contradicts itself about compression/],
    ["is compressed in secret", [[100, 32, 112], [104, 8, 1]], /contradicts itself/],
    ["has an endless extension", [[104, 32, 7], [108, 32, 0xffffffff]], /does not fit into it/],
    ["has an L2 table beyond its end", [[3 * 65536, 64, 2 ** 40]], /is cut off/],
    ["has an L2 table between clusters", [[3 * 65536, 64, 512]], /broken L1 table/],
    ["has data beyond its end", [[4 * 65536, 64, 2 ** 40]], /is cut off/],
    ["has compressed data beyond its end", [[4 * 65536, 64, 2 ** 62 + 2 ** 40]], /is cut off/],
  ] as [string, Change[], RegExp][]
) {
  Deno.test(`qcow2 that ${what} is refused`, async () => {
    const image = qcow2Image();
    const view = new DataView(image.buffer);
    for (const [at, bits, value] of changes) {
      if (bits === 8) view.setUint8(at, value);
      else if (bits === 32) view.setUint32(at, value);
      else view.setBigUint64(at, BigInt(value));
    }
    const refusal = await refusalOf(image);
    assert.match(refusal, word);
    assert.match(refusal, /^The image "a\.img" .*\nWhat to do: /);
  });
}

Deno.test("a disk that is larger than allowed is refused, with both sizes", async () => {
  for (const image of [qcow2Image(), mbrDisk(10 * 1024 ** 2)]) {
    const bytes = 10 * 1024 ** 2;
    assert.equal((await formatOf(image, bytes)).virtualBytes, bytes);
    assert.match(await refusalOf(image, bytes - 1), /a disk of 10485760 .*more than the 10485759/);
  }
});

Deno.test("an image that is cut off anywhere is refused", async () => {
  for (const whole of [qcow2Image(), qcow2Image({ version: 2 }), mbrDisk(), gptDisk(512)]) {
    await fc.assert(fc.asyncProperty(fc.nat(whole.length - 1), async (length) => {
      await refusalOf(whole.slice(0, length));
    }));
    for (const length of [0, 1, 7, 8, 71, 72, 103, 104, 511, 512, whole.length - 1]) {
      await refusalOf(whole.slice(0, length));
    }
  }
});

/** Bytes at certain places of an empty file. */
function fileWith(...parts: [at: number, bytes: string][]): Uint8Array<ArrayBuffer> {
  const file = new Uint8Array(100 * 1024);
  for (const [at, bytes] of parts) {
    file.set(Array.from(bytes, (character) => character.charCodeAt(0)), at);
  }
  return file;
}

for (
  const [what, bytes, advice] of [
    ["is empty", new Uint8Array(), /Fetch it again/],
    ["is packed by xz", fileWith([0, "\xfd7zXZ\0"]), /Run unxz on it/],
    ["is packed by bzip2", fileWith([0, "BZh9"]), /bunzip2/],
    ["is packed by gzip", fileWith([0, "\x1f\x8b"]), /gunzip/],
    ["is packed by zstd", fileWith([0, "\x28\xb5\x2f\xfd"]), /unzstd/],
    ["is a ZIP archive", fileWith([0, "PK\x03\x04"]), /unzip/],
    ["is a tar archive", fileWith([0, "disk.vmdk"], [257, "ustar"]), /tar/],
    ["is a VMDK image", fileWith([0, "KDMV"]), /qemu-img convert/],
    ["is a VDI image", fileWith([0, "<<< QEMU"], [64, "\x7f\x10\xda\xbe"]), /qemu-img convert/],
    ["is a VHDX image", fileWith([0, "vhdxfile"]), /qemu-img convert/],
    ["is an ISO image", fileWith([32769, "CD001"]), /cloud image/],
    ["is an ISO image", isoHybrid(), /cloud image/],
    ["is a file system without", fileWith([1080, "\x53\xef"]), /a whole disk/],
    ["is a file system without", fileWith([0, "XFSB"]), /a whole disk/],
    ["is a web page", fileWith([0, "\xef\xbb\xbf\n <!doctype html><html>"]), /Check the URL/],
    ["is a web page", fileWith([0, "<html>"]), /Check the URL/],
    ["is a JSON document", fileWith([0, '{"errors": []}']), /Check the URL/],
    ["is a pointer of Git LFS", fileWith([0, "version https://git-lfs.github"]), /git lfs pull/],
    ["is no disk image", fileWith([0, "hello"]), /Check that it is the image/],
    ["is no disk image", fileWith(), /Check that it is the image/],
    ["is no disk image", fileWith([446, "\x7f"], [510, "\x55\xaa"]), /Check/], // a boot sector
    ["is no disk image", fileWith([510, "\x55\xaa"]), /Check/], // without partitions
  ] as const
) {
  Deno.test(`what ${what} is refused as that: ${advice.source}`, async () => {
    const refusal = await refusalOf(bytes);
    assert(refusal.startsWith(`The image "a.img" ${what}`), refusal);
    assert.match(refusal, advice);
  });
}

/** An installer's image, which boots from a disk too. */
function isoHybrid(): Uint8Array<ArrayBuffer> {
  const disk = mbrDisk();
  disk.set(new TextEncoder().encode("CD001"), 32769);
  return disk;
}

Deno.test("whatever is changed in an image, it is taken or refused, and soon", async () => {
  const change = fc.oneof(
    fc.record({ at: fc.nat(120), byte: fc.nat(255) }), // the header
    fc.record({ at: fc.nat(30).map((n) => 3 * 65536 + n), byte: fc.nat(255) }), // the L1 table
    fc.record({ at: fc.nat(300).map((n) => 4 * 65536 + n), byte: fc.nat(255) }), // an L2 table
  );
  const image = fc.constantFrom(
    qcow2Image(),
    qcow2Image({ version: 2 }),
    qcow2Image({ extendedL2: true }),
    mbrDisk(),
    gptDisk(512),
    gptDisk(4096),
  );
  await fc.assert(
    fc.asyncProperty(image, fc.array(change, { minLength: 1 }), async (good, changes) => {
      const changed = good.slice();
      for (const { at, byte } of changes) changed[at] = byte;
      try {
        const { virtualBytes } = await formatOf(changed);
        assert(virtualBytes > 0 && virtualBytes <= TIB);
      } catch (error) {
        if (!(error instanceof SystemFailure)) throw error;
      }
    }),
    { numRuns: 500 },
  );
});
