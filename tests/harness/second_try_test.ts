// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { runWithSecondTry } from "./second_try.ts";

/** Deno reports a test with the file that registers it. */
const REGISTER = `
  export function register(name: string, test: (t: Deno.TestContext) => Promise<void>): void {
    Deno.test(name, test);
  }
`;

/** Tests of which one fails only once, and one each time. */
function testFile(marker: string): string {
  return `
    import { register } from "./register.ts";
    Deno.test("one passes", () => {});
    Deno.test({ name: "one is ignored", ignore: true, fn() {} });
    register('flaky: "a/b" $1', async (t) => {
      await t.step("inside", () => {
        const options = { createNew: true }; // which fails the second time
        try {
          Deno.writeTextFileSync(${JSON.stringify(marker)}, "", options);
        } catch {
          return;
        }
        throw new Error("only once");
      });
    });
    Deno.test("broken", () => { throw new Error("each time \\x1b[0;m"); });
  `;
}

Deno.test("a test that fails runs once more: it has passed then, as flaky, or failed", async () => {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  let [resets, text] = [0, ""];
  try {
    const file = `${directory}/some_test.ts`;
    await Deno.writeTextFile(`${directory}/register.ts`, REGISTER);
    await Deno.writeTextFile(file, testFile(`${directory}/tried`));
    const tries = await runWithSecondTry([file], {
      reset: () => Promise.resolve(void resets++),
      log: (line) => void (text += `${line}\n`),
      output: "null",
    });
    assert.deepEqual(tries, { passed: 2, failed: 1, ignored: 1, flaky: ['flaky: "a/b" $1'] });
    assert.equal(resets, 2);
    assert.match(text, /^flaky: flaky: .*\nThe first time [^]*only once[^]*\nThe second time/m);
    assert.match(text, /^FAILED twice: broken\n[^]*each time/m);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});
