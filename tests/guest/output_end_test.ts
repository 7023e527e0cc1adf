// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { OutputEnd } from "../../src/guest/output_end.ts";
import { sleep } from "../../src/wait.ts";

const TOKEN = "0123456789abcdef0123456789abcdef";
const MARK = Buffer.from(`@libvirt-gci-${TOKEN}`);

/** An OutputEnd whose sink keeps all that came through. */
function start(): { readonly end: OutputEnd; readonly output: () => Buffer } {
  const parts: Uint8Array[] = [];
  const end = new OutputEnd(TOKEN, (bytes) => {
    parts.push(bytes.slice());
    return Promise.resolve();
  });
  return { end, output: () => Buffer.concat(parts) };
}

/** Cuts bytes into chunks, at places that are given as parts of the whole. */
function cut(bytes: Buffer, places: readonly number[]): Buffer[] {
  const ends = [...places.map((place) => Math.floor(place * bytes.length)), bytes.length];
  let from = 0;
  return ends.sort((a, b) => a - b).map((to) => {
    const chunk = bytes.subarray(from, to);
    from = to;
    return chunk;
  });
}

// Bytes, and what may be taken for the mark: parts of it, and marks that differ at their very end.
const piece = fc.oneof(
  fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
  fc.nat(MARK.length - 1).map((length) => MARK.subarray(0, length)),
  fc.nat(MARK.length - 1).map((from) => MARK.subarray(from + 1)),
  fc.constantFrom("@", "@@", "@libvirt-gci-", `@libvirt-gci-${TOKEN.slice(0, -1)}`, TOKEN)
    .map((text) => Buffer.from(text)),
);
const data = fc.array(piece, { maxLength: 8 }).map((pieces) => Buffer.concat(pieces))
  .filter((bytes) => Buffer.concat([bytes, MARK]).indexOf(MARK) === bytes.length);
const places = fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 20 });

Deno.test("any bytes in any chunks come through whole, up to the mark and not beyond", async () => {
  await fc.assert(
    fc.asyncProperty(data, data, places, async (before, after, places) => {
      const { end, output } = start();
      const whole = Buffer.concat([before, MARK, after]);
      let pushed = 0;
      for (const chunk of cut(whole, places)) {
        pushed += chunk.length;
        const seen = await end.push(chunk);
        assert.equal(seen, pushed >= before.length + MARK.length);
        assert.equal(end.seen, seen);
        if (seen) break;
      }
      assert.deepEqual(output(), before);
      assert.equal(end.seen, true);
    }),
    { numRuns: 5000 },
  );
});

Deno.test("nothing is held back but what may become the mark", async () => {
  await fc.assert(
    fc.asyncProperty(data, places, async (before, places) => {
      const { end, output } = start();
      let pushed = Buffer.alloc(0);
      for (const chunk of cut(Buffer.concat([before, MARK]), places)) {
        pushed = Buffer.concat([pushed, chunk]);
        if (await end.push(chunk)) break;
        const held = pushed.subarray(output().length);
        assert.deepEqual(held, MARK.subarray(0, held.length), "held what cannot become the mark");
      }
    }),
    { numRuns: 5000 },
  );
});

Deno.test("output that comes a byte at a time comes through a byte at a time", async () => {
  const { end, output } = start();
  const text = Buffer.from("ümläut\n@@x");
  for (const [i, byte] of text.entries()) {
    await end.push(Uint8Array.of(byte));
    if (byte !== 0x40) assert.equal(output().length, i + 1);
  }
  assert.deepEqual(output(), text);
});

Deno.test("an empty chunk, and a mark without anything before it, reach no sink", async () => {
  let sinks = 0;
  const end = new OutputEnd(TOKEN, () => {
    sinks++;
    return Promise.resolve();
  });
  assert.equal(await end.push(new Uint8Array()), false);
  assert.equal(await end.push(MARK), true);
  assert.equal(sinks, 0);
});

Deno.test("the mark of another script is output", async () => {
  const { end, output } = start();
  const other = Buffer.from(`@libvirt-gci-${"f".repeat(32)}`);
  assert.equal(await end.push(other), false);
  assert.equal(await end.push(MARK), true);
  assert.deepEqual(output(), other);
});

Deno.test("a push is over when the sink has taken the bytes", async () => {
  const { promise: taken, resolve: take } = Promise.withResolvers<void>();
  const end = new OutputEnd(TOKEN, () => taken);
  let over = false;
  const push = end.push(Buffer.from("x")).then(() => over = true);
  await sleep(1);
  assert.equal(over, false);
  take();
  await push;
});

Deno.test("what the sink throws, a push throws", async () => {
  const end = new OutputEnd(TOKEN, () => Promise.reject(new Error("broken pipe")));
  await assert.rejects(end.push(Buffer.from("x")), /broken pipe/);
});

Deno.test("a real sh prints the mark, unquoted and in single quotes", async () => {
  for (const token of [TOKEN, "7".repeat(32)]) {
    const printf = OutputEnd.printf(token);
    for (const script of [printf, `sh -c '${printf}'`]) {
      const { stdout } = await new Deno.Command("sh", { args: ["-c", script] }).output();
      assert.equal(new TextDecoder().decode(stdout), `@libvirt-gci-${token}`);
    }
  }
});
