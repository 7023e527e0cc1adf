// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { mayExist, orMissing } from "../src/files.ts";

const NOT_THERE = ["/nonexistent/file", "/etc/passwd/file"];
const UNREADABLE = `/${"x".repeat(300)}`; // no file system has so long a name

Deno.test("orMissing() gives null for a file that is not there, and other failures as they are", async () => {
  assert.match(await orMissing(Deno.readTextFile("/etc/passwd")) ?? "", /root/);
  for (const path of NOT_THERE) assert.equal(await orMissing(Deno.readTextFile(path)), null);
  await assert.rejects(orMissing(Deno.readTextFile(UNREADABLE)), /name too long/i);
});

Deno.test("mayExist() is false only if it is certain that there is no such file", async () => {
  assert(await mayExist("/etc"));
  for (const path of NOT_THERE) assert(!await mayExist(path), path);
  assert(await mayExist(UNREADABLE));
});
