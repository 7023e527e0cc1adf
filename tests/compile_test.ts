// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";

const ROOT = new URL("..", import.meta.url).pathname;

/** How the task ends with this file for Deno's runtime, and whether there is a program then. */
async function compileWith(
  runtime: string,
): Promise<{ readonly success: boolean; readonly stderr: string; readonly files: string[] }> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    const { success, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "--allow-all", "packaging/compile.ts", `${directory}/libvirt-gci`],
      env: { DENORT_BIN: runtime },
      cwd: ROOT,
    }).output();
    const files = [...Deno.readDirSync(directory)].map(({ name }) => name);
    return { success, stderr: new TextDecoder().decode(stderr), files };
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("a program that does not print its version is not kept, and compile fails", async () => {
  const { success, stderr, files } = await compileWith("/bin/true");
  assert(!success);
  assert.match(stderr, /was not compiled: What was compiled does not run: it does not print/);
  assert.match(stderr, /must be the denort of Deno \d/);
  assert.deepEqual(files, []);
});

Deno.test("compile shows why Deno does not compile, and fails", async () => {
  const { success, stderr, files } = await compileWith("/nonexistent/denort");
  assert(!success);
  assert.match(stderr, /\/nonexistent\/denort[^]*was not compiled: deno compile failed, see above/);
  assert.deepEqual(files, []);
});
