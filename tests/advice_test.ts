// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";

/** How advice may begin: with what to do, or with the command itself, and with no vague verb. */
const BEGINNINGS = new Set([
  "Add",
  "Allow",
  "Ask",
  "Check",
  "Create",
  "Edit",
  "End",
  "Fetch",
  "Fix",
  "Free",
  "Give",
  "Install",
  "List",
  "Log",
  "Omit",
  "Raise",
  "Remove",
  "Retry",
  "Run",
  "Set",
  "Start",
  "Take",
  "Use",
  "Wait",
  "Write",
  "chmod",
  "chown",
]);

/** The first word of a literal that is advice, or the first of two. */
const ADVICE = /\badvice\s*[:=]\s+(?:[^,;{}"'`]*\?\s*)?["'`]([^\s"'`:,]*)/gi;

async function* sources(folder: URL): AsyncGenerator<URL> {
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    if (isDirectory) yield* sources(new URL(`${name}/`, folder));
    else yield new URL(name, folder);
  }
}

Deno.test("all advice begins with something to do", async () => {
  let count = 0;
  const others: string[] = [];
  for await (const file of sources(new URL("../src/", import.meta.url))) {
    const text = await Deno.readTextFile(file);
    for (const { 0: found, 1: first = "", index } of text.matchAll(ADVICE)) {
      count++;
      const line = text.slice(0, index).split("\n").length;
      if (!BEGINNINGS.has(first)) others.push(`${file.pathname}:${line}: ${found}`);
    }
  }
  assert.deepEqual(others, []);
  assert(count > 70, `${count} found`);
});
