// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import { explain } from "../../src/errors.ts";
import {
  type FetchedFile,
  type LocalImage,
  type LocalImageOptions,
  openLocalImage,
} from "../../src/image/image.ts";
import { mbrDisk, qcow2Image } from "../fakes/test_images.ts";

type Bytes = Uint8Array<ArrayBuffer>;

function sha256(bytes: Bytes): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** Files of images, and where they are unpacked. */
class Images implements AsyncDisposable {
  readonly #path = Deno.makeTempDirSync({ prefix: "libvirt-gci-test-" });
  readonly directory = `${this.#path}/cache`;
  readonly path = `${this.#path}/a.img`;
  removed = 0;

  async open(
    bytes: Bytes,
    fetched: Partial<FetchedFile> = {},
    options: Partial<LocalImageOptions> = {},
  ): Promise<LocalImage> {
    await Deno.writeFile(this.path, bytes);
    const remove = () => Promise.resolve(void this.removed++);
    const file = { path: this.path, name: '"a.img"', sha256: null, remove, ...fetched };
    return await openLocalImage(file, {
      directory: this.directory,
      signal: new AbortController().signal,
      mostBytes: 10e6,
      mostVirtualBytes: 100e6,
      ...options,
    });
  }

  /** What an image is refused with, as it is printed. */
  async refusalOf(...args: Parameters<Images["open"]>): Promise<string> {
    return await this.open(...args).then(() => assert.fail("accepted"), explain);
  }

  /** The files where images are unpacked. */
  unpacked(): string[] {
    return [...Deno.readDirSync(this.directory)].map(({ name }) => name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.#path, { recursive: true });
  }
}

async function bytesOf(image: LocalImage): Promise<Bytes> {
  return new Uint8Array(await new Response(image.open()).arrayBuffer());
}

Deno.test("an image gives its bytes as often as one wants, and its digest after them", async () => {
  await using images = new Images();
  const bytes = mbrDisk(3_000_320);
  await using image = await images.open(bytes);
  assert.deepEqual([image.format, image.fileBytes], ["raw", bytes.length]);
  assert.throws(() => image.digest, /before all bytes have passed/);
  for (let i = 0; i < 2; i++) assert.deepEqual(await bytesOf(image), bytes);
  assert.equal(image.digest, `sha256:${sha256(bytes)}`);
});

Deno.test("the digest that was promised is known at once, and checked at the end", async () => {
  await using images = new Images();
  const bytes = qcow2Image();
  await using image = await images.open(bytes, { sha256: sha256(bytes) });
  assert.equal(image.digest, `sha256:${sha256(bytes)}`);
  assert.deepEqual(await bytesOf(image), bytes);

  await using other = await images.open(bytes, { sha256: "0".repeat(64) });
  await assert.rejects(
    bytesOf(other),
    /The SHA-256 of the image "a\.img" is [\da-f]{64}, not 0{64}/,
  );
});

Deno.test("an image that is packed is unpacked, and removed with what was fetched", async () => {
  await using images = new Images();
  const bytes = qcow2Image();
  const packed = Uint8Array.from(gzipSync(bytes));
  for (const promised of [null, sha256(packed)]) {
    images.removed = 0;
    {
      await using image = await images.open(packed, { sha256: promised });
      assert.deepEqual([image.format, image.fileBytes], ["qcow2", bytes.length]);
      assert.equal(image.digest, `sha256:${sha256(packed)}`);
      assert.deepEqual(await bytesOf(image), bytes);
      assert.deepEqual([images.removed, images.unpacked().length], [0, 1]);
    }
    assert.deepEqual([images.removed, images.unpacked()], [1, []]);
  }
});

Deno.test("of an image that is refused, nothing is left", async () => {
  const bytes = qcow2Image();
  const backed = qcow2Image();
  new DataView(backed.buffer).setBigUint64(8, 200n);
  const packed = Uint8Array.from(gzipSync(bytes));
  const twice = Uint8Array.from(gzipSync(packed));
  const cases: [Bytes, Partial<FetchedFile>, Partial<LocalImageOptions>, RegExp][] = [
    [backed, {}, {}, /"a\.img" has a backing file/],
    [Uint8Array.from(gzipSync(backed)), {}, {}, /"a\.img" has a backing file/],
    [twice, {}, {}, /"a\.img" is packed by gzip/],
    [packed.subarray(0, 500), {}, {}, /Cannot unpack "a\.img" by gzip\nbecause: it is cut off/],
    [packed, { sha256: "0".repeat(64) }, {}, /SHA-256 of the image "a\.img" is .*, not 0{64}/],
    [packed, {}, { mostBytes: bytes.length - 1 }, /unpacks to more than/],
    [bytes, {}, { mostBytes: bytes.length - 1 }, /"a\.img" has more than/],
    [bytes, {}, { mostVirtualBytes: 1e6 }, /a disk of 10485760 bytes/],
    [bytes, { path: "/nonexistent" }, {}, /Cannot read the image "a\.img"\nbecause: no such file/],
    [bytes, { path: "/dev/zero" }, {}, /"a\.img"\nbecause: it is no regular file/],
    [bytes, { path: "/dev" }, {}, /"a\.img"\nbecause: it is no regular file/],
  ];
  for (const [content, fetched, options, word] of cases) {
    await using images = new Images();
    await Deno.mkdir(images.directory);
    assert.match(await images.refusalOf(content, fetched, options), word);
    assert.deepEqual([images.removed, images.unpacked()], [1, []], word.source);
  }
});

Deno.test("an image whose file changes after it was looked at is refused", async () => {
  await using images = new Images();
  const bytes = qcow2Image();
  await using image = await images.open(bytes);
  using file = await Deno.open(images.path, { write: true });
  await file.seek(8 + 7, Deno.SeekMode.Start);
  await file.write(Uint8Array.of(200)); // the place of a backing file's name
  await assert.rejects(bytesOf(image), /"a\.img" has changed while it was read/);
  await Deno.writeFile(images.path, bytes.subarray(0, 300_000));
  await assert.rejects(bytesOf(image), /"a\.img" has changed while it was read/);
});

Deno.test("an image is read from the file that was looked at, though its name is another's", async () => {
  await using images = new Images();
  const bytes = qcow2Image();
  await using image = await images.open(bytes);
  await Deno.remove(images.path);
  await Deno.writeFile(images.path, mbrDisk());
  assert.deepEqual(await bytesOf(image), bytes);
});

Deno.test("a signal ends a stream, and who cancels a stream may open another", async () => {
  await using images = new Images();
  const cancel = new AbortController();
  const bytes = mbrDisk(9_000_448);
  await using image = await images.open(bytes, {}, { signal: cancel.signal });
  for await (const _ of image.open()) break;
  assert.deepEqual(await bytesOf(image), bytes);
  const reader = image.open().getReader();
  await reader.read();
  cancel.abort(new Error("cancelled here"));
  await assert.rejects(async () => {
    while (!(await reader.read()).done);
  }, /cancelled here/);
});
