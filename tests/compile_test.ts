// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { PERMISSIONS } from "../packaging/permissions.ts";

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

Deno.test("a program for another processor is not kept if it is for this one", async () => {
  const arch = Deno.build.arch === "x86_64" ? "aarch64" : "x86_64";
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    const [main, file] = [`${directory}/main.js`, `${directory}/libvirt-gci`];
    await Deno.writeTextFile(main, 'console.log("main");\n');
    const code = `import { compile } from "./packaging/compile.ts";
      await compile("${main}", "${file}", { arch: "${arch}" });`;
    const { success, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["eval", code],
      env: { [`DENORT_BIN_${arch.toUpperCase()}`]: "/bin/true" },
      cwd: ROOT,
    }).output();
    assert(!success);
    const said = `not for ${arch}\nDENORT_BIN_${arch.toUpperCase()} must be`;
    assert(new TextDecoder().decode(stderr).includes(said), new TextDecoder().decode(stderr));
    assert.deepEqual([...Deno.readDirSync(directory)].map(({ name }) => name), ["main.js"]);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

/** What a program tells of itself that is compiled as ours is, but for its permissions. */
const TELLS = `
const descriptors = [
  ...["ffi", "env", "net", "read", "write", "run", "sys", "import"].map((name) => ({ name })),
  ...["homedir", "networkInterfaces", "uid", "gid", "hostname", "osRelease", "osUptime", "loadavg",
    "systemMemoryInfo", "username", "cpus"].map((kind) => ({ name: "sys", kind })),
];
const granted = descriptors.filter((it) => Deno.permissions.querySync(it).state === "granted");
console.log(JSON.stringify(granted.map(({ name, kind = name }) => kind)));`;

Deno.test("Deno lets the program do what SECURITY.md says, and nothing else", async () => {
  const file = await Deno.makeTempFile({ prefix: "libvirt-gci-test-", suffix: ".js" });
  try {
    await Deno.writeTextFile(file, TELLS);
    const args = ["run", "--quiet", "--no-prompt", ...PERMISSIONS, file];
    const { stdout } = await new Deno.Command(Deno.execPath(), { args }).output();
    const granted = "ffi env net read write run homedir networkInterfaces uid".split(" ");
    assert.deepEqual(JSON.parse(new TextDecoder().decode(stdout)), granted);
  } finally {
    await Deno.remove(file);
  }
});
