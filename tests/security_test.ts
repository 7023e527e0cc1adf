// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";

Deno.test("each test that SECURITY.md names is there", async () => {
  const text = await Deno.readTextFile(new URL("../SECURITY.md", import.meta.url));
  const named = [...text.replace(/\n {4,}/g, " ").matchAll(/^ {2}- `([^`]+)`: (.+)$/gm)];
  assert(named.length > 20);
  for (const [, file, name = ""] of named) {
    const tests = await Deno.readTextFile(new URL(file ?? "", import.meta.url));
    assert(tests.includes(name), `${file} has no test "${name}"`);
  }
});
