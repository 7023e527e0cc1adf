// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { blocking, fn } from "../../ffi/declare.ts";
import { loadLate } from "../../ffi/load_late.ts";
import { cString } from "../../ffi/memory.ts";

const atoi = fn("i32", /* const char *nptr */ "buffer");

Deno.test({
  name: "a function that is bound late gives what it gives otherwise, under either name",
  sanitizeResources: false, // a library stays loaded
  fn: async () => {
    const { atoi: number, renamed, waits, address } = loadLate("libc.so.6", {
      atoi,
      renamed: { ...atoi, name: "atoi" },
      waits: { ...blocking("i32", /* const char *nptr */ "buffer"), name: "atoi" },
      address: { type: "pointer", name: "atoi" },
    });
    assert.deepEqual([number(cString("12")), number(cString("-3"))], [12, -3]);
    assert.equal(renamed(cString("45")), 45);
    assert.equal(await waits(cString("67")), 67);
    assert(address !== null);
  },
});

Deno.test("a function that the library lacks is missed before anybody calls it", () => {
  assert.throws(() => loadLate("libc.so.6", { no_such_function: atoi }), /no_such_function/);
  assert.throws(() => loadLate("libnone.so.0", { atoi }), /libnone\.so\.0/);
});
