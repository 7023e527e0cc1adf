// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { ScriptOutput } from "../../src/cli/script_output.ts";

const RUNNER = { SYSTEM_FAILURE_EXIT_CODE: "2" };

/** What stands before our words, after this output of a script. */
async function before(output: string, env: Record<string, string>): Promise<string> {
  const encoder = new TextEncoder();
  const decoder = new TextDecoder();
  let printed = "";
  const sink = (bytes: Uint8Array): Promise<void> => {
    printed += decoder.decode(bytes, { stream: true });
    return Promise.resolve();
  };
  const script = new ScriptOutput({ stdout: sink, stderr: sink });
  for (const part of output) await script.stdout(encoder.encode(part));
  await script.stderr(new Uint8Array());
  await script.end(env);
  assert(printed.startsWith(output));
  return printed.slice(output.length);
}

Deno.test("in a job's log our words begin a line, and nothing of the script's hides them", async () => {
  assert.equal(await before("\x1b[8mhidden", RUNNER), "\x1b[0m\n");
  assert.equal(await before("\x1b[8mhidden\n", RUNNER), "\x1b[0m");
});

Deno.test("by hand only the line is ended", async () => {
  assert.equal(await before("half a line", {}), "\n");
  assert.equal(await before("a line\n", {}), "");
});

Deno.test("without a script's output there is nothing to end", async () => {
  assert.equal(await before("", RUNNER), "");
});
