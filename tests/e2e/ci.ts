// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * Runs end-to-end tests, each that fails once more: `deno run --allow-all tests/e2e/ci.ts FILE...`. The
 * last line is as that of `deno test`.
 */
import assert from "node:assert/strict";
import { command } from "./bed.ts";
import { runWithSecondTry } from "../harness/second_try.ts";

const TESTBED = new URL("../testbed/testbed.sh", import.meta.url).pathname;

/** Whatever a test left is gone then. */
async function makeBedAnew(): Promise<void> {
  for (const what of ["down", "up"]) {
    const { status, stderr } = await command([TESTBED, what]);
    assert.equal(status, 0, stderr);
  }
}

const { passed, failed, ignored } = await runWithSecondTry(Deno.args, {
  reset: makeBedAnew,
  log: console.log,
});
console.log(
  `${failed === 0 ? "ok" : "FAILED"} | ${passed} passed | ${failed} failed | ${ignored} ignored`,
);
Deno.exit(failed === 0 ? 0 : 1);
