// SPDX-License-Identifier: GPL-2.0-or-later

import assert from "node:assert/strict";

import { iso9660Image } from "../../src/machine/storage/iso9660.ts";

const SECTOR = 2048;

/** Files of every size around a sector, enough of them for a directory of several sectors. */
const FILES = new Map([
  ["user-data", bytes("#cloud-config\n")],
  ["meta-data", bytes("instance-id: x\n")],
  ["network-config", new Uint8Array()],
  ["Mixed.Case-and.dots", bytes("x".repeat(5000))],
  ["n".repeat(64), bytes("long")],
  ...Array.from({ length: 200 }, (_, n): [string, Uint8Array] => [`file-${n}`, pattern(n * 41)]),
  ["one-sector", pattern(SECTOR)],
  ["one-more-byte", pattern(SECTOR + 1)],
  ["two-sectors", pattern(2 * SECTOR)],
]);

Deno.test("an image holds the files under their own names for readers of Joliet", () => {
  assert.deepEqual(readFiles(iso9660Image("cidata", FILES), 1), FILES);
});

Deno.test("an image holds the files under upper-case names for other readers", () => {
  const files = readFiles(iso9660Image("cidata", FILES), 0);

  assert.equal(files.size, FILES.size);
  assert.deepEqual(files.get("USER_DATA.;1"), FILES.get("user-data"));
  assert.deepEqual(files.get("MIXED_CASE_AND_DOTS.;1"), FILES.get("Mixed.Case-and.dots"));
  for (const name of files.keys()) assert.match(name, /^[A-Z0-9_]{1,30}\.;1$/);
});

Deno.test("an image without files is an empty directory", () => {
  assert.deepEqual(readFiles(iso9660Image("cidata", new Map()), 0), new Map());
  assert.deepEqual(readFiles(iso9660Image("cidata", new Map()), 1), new Map());
});

Deno.test("an image has its label in both descriptors and its size in whole sectors", () => {
  const image = iso9660Image("cidata", FILES);

  assert.equal(latin1(image.subarray(16 * SECTOR + 40, 16 * SECTOR + 72)), "cidata".padEnd(32));
  assert.equal(ucs2(image.subarray(17 * SECTOR + 40, 17 * SECTOR + 72)), "cidata".padEnd(16));
  assert.equal(both(image, 16 * SECTOR + 80, 4) * SECTOR, image.length);
  assert.equal(both(image, 17 * SECTOR + 80, 4) * SECTOR, image.length);
  assert.equal(image[18 * SECTOR], 255);
});

Deno.test("the same files give the same image, in whichever order they come", () => {
  const backwards = new Map([...FILES].reverse());
  assert.deepEqual(iso9660Image("cidata", FILES), iso9660Image("cidata", backwards));
});

Deno.test("an image refuses what the format cannot hold", () => {
  const image = (label: string, ...names: string[]) =>
    iso9660Image(label, new Map(names.map((name) => [name, new Uint8Array()])));

  assert.throws(() => image("seventeen_letters"), /label "seventeen_letters"/);
  assert.throws(() => image("ci data"), /label "ci data"/);
  assert.throws(() => image("cidata", "a/b"), /file name "a\/b"/);
  assert.throws(() => image("cidata", ""), /file name ""/);
  assert.throws(() => image("cidata", "é"), /file name "é"/);
  assert.throws(() => image("cidata", "n".repeat(65)), /file name "n+"/);
  assert.throws(() => image("cidata", "user-data", "user_data"), /alike/);
});

Deno.test({
  name: "isoinfo reads the names of an image with and without Joliet",
  ignore: !isInstalled("isoinfo"),
  fn: () =>
    withImageFile((path) => {
      const joliet = run("isoinfo", "-J", "-f", "-i", path).trim().split("\n");
      assert.deepEqual(joliet.sort(), [...FILES.keys()].map((name) => `/${name}`).sort());

      const primary = run("isoinfo", "-f", "-i", path).trim().split("\n");
      assert.ok(primary.includes("/USER_DATA.;1"));
      assert.equal(primary.length, FILES.size);

      assert.match(run("isoinfo", "-d", "-i", path), /Volume id: cidata\n/);
    }),
});

Deno.test({
  name: "bsdtar extracts the files of an image",
  ignore: !isInstalled("bsdtar"),
  fn: () =>
    withImageFile((path, directory) => {
      run("bsdtar", "-xf", path, "-C", directory);
      for (const [name, content] of FILES) {
        assert.deepEqual(Deno.readFileSync(`${directory}/${name}`), content, name);
      }
    }),
});

Deno.test({
  name: "xorriso finds no fault in an image",
  ignore: !isInstalled("xorriso"),
  fn: () =>
    withImageFile((path) => {
      const listing = run("xorriso", "-abort_on", "SORRY", "-indev", path, "-find", "/", "--");
      for (const name of FILES.keys()) assert.ok(listing.includes(`'/${name}'`), name);
    }),
});

Deno.test({
  name: "blkid tells the type and the label of an image",
  ignore: !isInstalled("blkid"),
  fn: () =>
    withImageFile((path) => {
      const properties = run("blkid", "-p", "-o", "export", path).split("\n");
      assert.ok(properties.includes("TYPE=iso9660"));
      assert.ok(properties.includes("LABEL=cidata"));
    }),
});

/** The files of the one or the other descriptor, checked against ECMA-119 on the way. */
function readFiles(image: Uint8Array, descriptor: 0 | 1): Map<string, Uint8Array> {
  const start = (16 + descriptor) * SECTOR;
  assert.equal(image[start], 1 + descriptor);
  assert.equal(latin1(image.subarray(start + 1, start + 6)), "CD001");
  const root = start + 156;
  const [sector, size] = [both(image, root + 2, 4), both(image, root + 10, 4)];
  const view = new DataView(image.buffer);
  for (const [offset, little] of [[140, true], [148, false]] as const) {
    const table = view.getUint32(start + offset, little) * SECTOR;
    assert.equal(view.getUint32(table + 2, little), sector);
  }

  const files = new Map<string, Uint8Array>();
  let previous = "";
  for (let offset = sector * SECTOR; offset < sector * SECTOR + size;) {
    const length = image[offset];
    const left = SECTOR - offset % SECTOR;
    assert.ok(length <= left, "a record crosses the end of a sector");
    const record = image.subarray(offset, offset + length);
    offset += length === 0 ? left : length;
    if (length === 0) continue;

    const content = both(record, 2, 4) * SECTOR;
    const data = image.subarray(content, content + both(record, 10, 4));
    const id = record.subarray(33, 33 + record[32]);
    if (record[25] === 2) {
      assert.deepEqual([content, data.length], [sector * SECTOR, size]);
      continue;
    }
    const name = descriptor === 0 ? latin1(id) : ucs2(id);
    assert.ok(name > previous, `"${name}" after "${previous}"`);
    previous = name;
    files.set(name, data);
  }
  return files;
}

/** A number that must be the same in both byte orders. */
function both(image: Uint8Array, offset: number, width: number): number {
  const [little, big] = [image.slice(offset, offset + width), image.slice(offset + width)];
  assert.deepEqual(little.toReversed(), big.subarray(0, width));
  return little.reduceRight((value, byte) => value * 256 + byte, 0);
}

function withImageFile(test: (path: string, directory: string) => void): void {
  const directory = Deno.makeTempDirSync();
  try {
    const path = `${directory}/image.iso`;
    Deno.writeFileSync(path, iso9660Image("cidata", FILES));
    test(path, directory);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

function isInstalled(program: string): boolean {
  return new Deno.Command("/bin/sh", { args: ["-c", 'command -v "$0"', program], stdout: "null" })
    .outputSync().success;
}

function run(program: string, ...args: string[]): string {
  const { success, stdout, stderr } = new Deno.Command(program, { args }).outputSync();
  assert.ok(success, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout);
}

function pattern(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => length + 7 * index);
}

function bytes(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

function latin1(data: Uint8Array): string {
  return new TextDecoder("latin1").decode(data);
}

function ucs2(data: Uint8Array): string {
  return new TextDecoder("utf-16be").decode(data);
}
