// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import * as zlib from "node:zlib";
import { explain, SystemFailure } from "../../src/errors.ts";
import { type Packing, packingOf, unpack } from "../../src/image/unpack.ts";

/** The types that ssh2's types bring along do not have it. */
const { zstdCompressSync } = zlib as unknown as {
  zstdCompressSync(bytes: Bytes, options?: { params: Record<number, number> }): Bytes;
};

/** Parameters of zstd, by their numbers in zstd.h. */
const ZSTD = { compressionLevel: 100, contentSizeFlag: 200, checksumFlag: 201 };

type Bytes = Uint8Array<ArrayBuffer>;

const PLAIN = bytesOf(
  Array.from({ length: 50_000 }, (_, i) => `line ${i * 7919 % 10007}\n`).join(""),
);

function bytesOf(text: string): Bytes {
  return new TextEncoder().encode(text);
}

function pack(bytes: Bytes, packing: Packing): Bytes {
  const checksum = { params: { [ZSTD.checksumFlag]: 1 } };
  return Uint8Array.from(
    packing === "gzip" ? zlib.gzipSync(bytes) : zstdCompressSync(bytes, checksum),
  );
}

function concat(...parts: readonly Bytes[]): Bytes {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

/** The bytes in pieces of this length. */
async function* pieces(bytes: Bytes, length: number): AsyncGenerator<Bytes> {
  for (let at = 0; at < bytes.length; at += length) {
    yield await Promise.resolve(bytes.subarray(at, at + length));
  }
}

async function unpacked(
  packed: Bytes,
  packing: Packing,
  { length = 1000, mostBytes = 10e6 }: { length?: number; mostBytes?: number } = {},
): Promise<Bytes> {
  const options = { packing, name: '"a.img"', mostBytes };
  const chunks = await Array.fromAsync(unpack(pieces(packed, length), options));
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

/** What it is refused with, as it is printed. */
function refusalOf(...args: Parameters<typeof unpacked>): Promise<string> {
  return unpacked(...args).then(() => assert.fail("unpacked"), (error) => {
    assert(error instanceof SystemFailure, String(error));
    return explain(error);
  });
}

const SKIPPABLE = Uint8Array.of(0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3);

for (const packing of ["gzip", "zstd"] as const) {
  const packed = pack(PLAIN, packing);

  Deno.test(`${packing} is known by its first bytes, and unpacked in pieces of any length`, async () => {
    assert.equal(packingOf(packed), packing);
    for (const length of [1, 13, 1000, 1e6]) {
      assert.deepEqual(await unpacked(packed, packing, { length }), PLAIN);
    }
  });

  Deno.test(`several members of ${packing} are unpacked one after the other`, async () => {
    const both = concat(packed, pack(new Uint8Array(), packing), packed);
    for (const length of [7, 1e6]) {
      assert.deepEqual(await unpacked(both, packing, { length }), concat(PLAIN, PLAIN));
    }
  });

  Deno.test(`${packing} that is cut off anywhere is refused`, async () => {
    const short = pack(PLAIN.subarray(0, 1000), packing);
    for (let length = 1; length < short.length; length++) {
      const refusal = await refusalOf(short.subarray(0, length), packing);
      assert.match(refusal, /^Cannot unpack "a\.img" by (gzip|zstd)\nbecause: it is cut off\n/);
    }
    assert.match(await refusalOf(concat(short, short.subarray(0, 9)), packing), /cut off/);
  });

  Deno.test(`${packing} that something else follows is refused`, async () => {
    for (const length of [1, 1e6]) {
      await refusalOf(concat(packed, bytesOf("something else")), packing, { length });
    }
  });

  Deno.test(`${packing} that was changed is refused`, async () => {
    const short = pack(PLAIN.subarray(0, 1000), packing);
    const isLax = (at: number) => packing === "gzip" && at >= 4 && at < 10; // its date and so on
    await fc.assert(
      fc.asyncProperty(
        fc.nat(short.length - 1),
        fc.integer({ min: 1, max: 255 }),
        async (at, x) => {
          const changed = short.slice();
          changed[at]! ^= x;
          const result = await unpacked(changed, packing).catch((error) => {
            assert(error instanceof SystemFailure, String(error));
            return null;
          });
          if (result !== null && !isLax(at)) assert.deepEqual(result, PLAIN.subarray(0, 1000));
        },
      ),
      { numRuns: 300 },
    );
  });

  Deno.test(`of a bomb of ${packing}, no more is unpacked than may be`, async () => {
    const bomb = pack(new Uint8Array(200e6), packing);
    assert(bomb.length < 300_000, `${bomb.length}`);
    const before = Deno.memoryUsage().rss;
    const start = performance.now();
    const refusal = await refusalOf(bomb, packing, { mostBytes: 5e6 });
    assert.match(refusal, /because: it unpacks to more than 5000000 bytes/);
    assert(Deno.memoryUsage().rss - before < 100e6);
    assert(performance.now() - start < 5000);
  });

  Deno.test(`whoever wants no more of ${packing} leaves nothing behind`, async () => {
    let returned = false;
    async function* source(): AsyncGenerator<Bytes> {
      try {
        yield* pieces(packed, 100);
      } finally {
        returned = true;
      }
    }
    const options = { packing, name: "x", mostBytes: 10e6 };
    for await (const _ of unpack(source(), options)) break;
    while (!returned) await new Promise((resolve) => setTimeout(resolve, 1));
  });

  Deno.test(`a failure of what comes is told as it is, not as one of ${packing}`, async () => {
    async function* source(): AsyncGenerator<Bytes> {
      yield* pieces(packed.subarray(0, 100), 100);
      throw new SystemFailure({ what: "the source failed" });
    }
    const all = Array.fromAsync(unpack(source(), { packing, name: "x", mostBytes: 10e6 }));
    await assert.rejects(all, /^SystemFailure: the source failed/);
  });
}

Deno.test("zstd frames of all forms are passed over to their end", async () => {
  const plain = PLAIN.subarray(0, 300_000);
  for (const level of [-5, 1, 19]) {
    for (const checksum of [0, 1]) {
      for (const contentSize of [0, 1]) {
        for (const part of [new Uint8Array(300_000), plain, plain.subarray(0, 100)]) {
          const params = {
            [ZSTD.compressionLevel]: level,
            [ZSTD.checksumFlag]: checksum,
            [ZSTD.contentSizeFlag]: contentSize,
          };
          const frame = Uint8Array.from(zstdCompressSync(part, { params }));
          const both = concat(SKIPPABLE, frame, SKIPPABLE, frame, SKIPPABLE);
          assert.deepEqual(await unpacked(both, "zstd"), concat(part, part));
        }
      }
    }
  }
});

Deno.test("a skippable frame that is cut off is refused", async () => {
  const packed = pack(PLAIN, "zstd");
  const refusal = await refusalOf(concat(packed, SKIPPABLE.subarray(0, 9)), "zstd");
  assert.match(refusal, /it is cut off/);
});

Deno.test("what is packed in another way is not taken for gzip or zstd", () => {
  for (const text of ["", "\x1f", "\xfd7zXZ\0", "BZh9", "QFI\xfb"]) {
    assert.equal(packingOf(Uint8Array.from(text, (c) => c.charCodeAt(0))), null);
  }
});
