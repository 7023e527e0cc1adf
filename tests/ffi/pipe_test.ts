// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { loadPipe, withSpliced } from "../../ffi/pipe.ts";

loadPipe(); // what is loaded in a test is taken for a leak of it

/** More than a pipe holds. */
const MANY = 3 * 1024 * 1024;

/** A file with bytes that tell where they stand, removed when it is disposed of. */
function file(): Disposable & { readonly path: string; readonly bytes: Uint8Array<ArrayBuffer> } {
  const path = Deno.makeTempFileSync({ prefix: "libvirt-gci-" });
  const bytes = new Uint8Array(new Uint32Array(MANY / 4).map((_, i) => i).buffer);
  Deno.writeFileSync(path, bytes);
  return { path, bytes, [Symbol.dispose]: () => Deno.removeSync(path) };
}

/** What another process reads at this path. */
async function read(path: string): Promise<Uint8Array<ArrayBuffer>> {
  const { success, stdout } = await new Deno.Command("cat", { args: [path] }).output();
  assert(success);
  return stdout;
}

Deno.test("another process reads a file with another beginning by the pipe's path", async () => {
  using source = file();
  for (const length of [0, 92, 65_536]) {
    const before = crypto.getRandomValues(new Uint8Array(length));
    const spliced = { before, file: source.path, offset: 4321 };
    const got = await withSpliced(spliced, read);
    assert(got !== null);
    assert.deepEqual(got.subarray(0, before.length), before);
    assert(got.length === before.length + MANY - 4321);
    assert(got.subarray(before.length).every((byte, i) => byte === source.bytes[i + 4321]));
  }
});

Deno.test("a pipe that nobody reads, or not to its end, keeps nobody", async () => {
  using source = file();
  const spliced = { before: new Uint8Array(MANY), file: source.path, offset: 0 };
  assert.equal(await withSpliced(spliced, () => Promise.resolve("unread")), "unread");
  const begun = await withSpliced(spliced, async (path) => {
    const { stdout } = await new Deno.Command("head", { args: ["-c", "5", path] }).output();
    return stdout.length;
  });
  assert.equal(begun, 5);
  await assert.rejects(withSpliced(spliced, () => Promise.reject(new Error("mine"))), /mine/);
});

Deno.test("a file that cannot be read is none, and one that fails on the way ends early", async () => {
  const missing = { before: new Uint8Array(1), file: "/nonexistent", offset: 0 };
  assert.equal(await withSpliced(missing, () => assert.fail("there is nothing to read")), null);
  const directory = { before: new Uint8Array(3), file: "/", offset: 0 };
  assert.equal((await withSpliced(directory, read))?.length, 3);
});
