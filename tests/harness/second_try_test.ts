// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { runWithSecondTry, type Tries } from "./second_try.ts";

/** Deno reports a test with the file that registers it. */
const REGISTER = `
  export function register(name: string, test: (t: Deno.TestContext) => Promise<void>): void {
    Deno.test(name, test);
  }
`;

/** Tests of which the last ones fail, the first `flaky` of them only once. */
function testFile(marker: string, { flaky, broken }: Record<"flaky" | "broken", number>): string {
  return `
    import { register } from "./register.ts";
    Deno.test("one passes", () => {});
    Deno.test({ name: "one is ignored", ignore: true, fn() {} });
    for (let i = 0; i < ${flaky}; i++) {
      register(\`flaky (\${i}): "a/b" $1\`, async (t) => {
        await t.step("inside", () => {
          const file = ${JSON.stringify(marker)} + i;
          try {
            Deno.readTextFileSync(file);
          } catch {
            Deno.writeTextFileSync(file, "");
            throw new Error("only once");
          }
        });
      });
    }
    for (let i = 0; i < ${broken}; i++) {
      Deno.test("broken " + i, () => { throw new Error("each time \\x1b[0;m"); });
    }
  `;
}

async function tried(
  tests: Record<"flaky" | "broken", number>,
): Promise<Tries & { readonly resets: number; readonly text: string }> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  let [resets, text] = [0, ""];
  try {
    const file = `${directory}/some_test.ts`;
    await Deno.writeTextFile(`${directory}/register.ts`, REGISTER);
    await Deno.writeTextFile(file, testFile(`${directory}/tried-`, tests));
    const tries = await runWithSecondTry([file], {
      reset: () => Promise.resolve(void resets++),
      log: (line) => void (text += `${line}\n`),
      output: "null",
    });
    return { ...tries, resets, text };
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("a test that passes at the second try has passed, and is said to be flaky", async () => {
  const { passed, failed, ignored, flaky, resets, text } = await tried({ flaky: 2, broken: 0 });
  assert.deepEqual([passed, failed, ignored, resets], [3, 0, 1, 2]);
  assert.deepEqual(flaky, ['flaky (0): "a/b" $1', 'flaky (1): "a/b" $1']);
  assert.match(text, /^flaky: flaky \(0\): .*\nThe first time [^]*only once[^]*\nThe second time/m);
});

Deno.test("a test that fails at both tries has failed", async () => {
  const { passed, failed, flaky, text } = await tried({ flaky: 1, broken: 1 });
  assert.deepEqual([passed, failed], [2, 1]);
  assert.equal(flaky.length, 1);
  assert.match(text, /^FAILED twice: broken 0\n[^]*each time/m);
});

Deno.test("three tests that fail get no second try", async () => {
  const { passed, failed, flaky, resets } = await tried({ flaky: 3, broken: 0 });
  assert.deepEqual([passed, failed, flaky, resets], [1, 3, [], 0]);
});
