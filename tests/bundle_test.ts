// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { isBuiltin } from "node:module";
import denoJson from "../deno.json" with { type: "json" };
import { bundle, closeModules } from "../packaging/bundle.ts";
import { readSource } from "../packaging/source.ts";
import { packageNames } from "./fakes/package_names.ts";

/** Gives the test a directory with the bundle in `bundle/`. */
async function withBundle(test: (directory: string) => Promise<void>): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    await bundle(`${directory}/bundle`);
    assert.deepEqual([...Deno.readDirSync(directory)].map(({ name }) => name), ["bundle"]);
    await test(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function deno(args: readonly string[], cwd: string): Promise<string> {
  const command = new Deno.Command(Deno.execPath(), { args: [...args], cwd });
  const { success, stdout, stderr } = await command.output();
  assert(success, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout);
}

/** What all modules import, as Deno reads them: static and dynamic imports. */
async function importsOf(directory: string): Promise<Set<string>> {
  const graph = JSON.parse(await deno(["info", "--no-config", "--json", "main.js"], directory));
  return new Set(
    graph.modules.flatMap(({ dependencies = [] }: { dependencies?: { specifier: string }[] }) =>
      dependencies.map(({ specifier }) => specifier)
    ),
  );
}

Deno.test("the bundle looks up its own files and Node's modules, and nothing else", () =>
  withBundle(async (directory) => {
    const files = [...Deno.readDirSync(`${directory}/bundle`)].map(({ name }) => `./${name}`);
    const imports = await importsOf(`${directory}/bundle`);
    assert(imports.has("node:buffer") && imports.size > 30, [...imports].join());
    assert.deepEqual(
      [...imports].filter((it) => !it.startsWith("node:") && !files.includes(it)),
      [],
    );

    const texts = files.map((file) => Deno.readTextFileSync(`${directory}/bundle/${file}`));
    const required = texts.flatMap((text) =>
      [...text.matchAll(/require\w*\(\s*["'`]([^"'`]+)["'`]/g)].map(([, name = ""]) => name)
    );
    assert(required.includes("node:crypto"), required.join());
    assert.deepEqual(required.filter((name) => !isBuiltin(name)), []);
    assert(!imports.has("node:module"), "a module can make a require() of its own");
  }));

/** What `deno compile` takes of the files of a bundle: their names, times and contents. */
async function filesOf(bundle: string): Promise<Map<string, string>> {
  const files = await Array.fromAsync(Deno.readDir(bundle), ({ name }) => name);
  return new Map(
    await Promise.all(
      files.sort().map(async (name): Promise<[string, string]> => {
        const { mtime } = await Deno.stat(`${bundle}/${name}`);
        return [name, `${mtime?.toISOString()}\n${await Deno.readTextFile(`${bundle}/${name}`)}`];
      }),
    ),
  );
}

Deno.test("two bundles of one commit are identical, and say the commit", () =>
  withBundle(async (directory) => {
    const files = await filesOf(`${directory}/bundle`);
    await bundle(`${directory}/bundle`); // at the same place, since paths are in its comments
    assert.deepEqual(await filesOf(`${directory}/bundle`), files);
    const { commit, time } = await readSource();
    assert.match(commit, /^commit [0-9a-f]{12}/);
    for (const [name, text] of files) assert(text.startsWith(time.toISOString()), name);
    const said = await deno(["run", "--no-config", "main.js", "--version"], `${directory}/bundle`);
    assert.equal(said, `libvirt-gci ${denoJson.version} (${commit})\n`);
  }));

Deno.test("packages above the bundle are not loaded, whatever they are called", () =>
  withBundle(async (directory) => {
    const trace = `${directory}/trace`;
    for (const name of await packageNames()) {
      const planted = `${directory}/node_modules/${name}`;
      await Deno.mkdir(planted, { recursive: true });
      const text = `Deno.writeTextFileSync("${trace}", "${name}\\n", { append: true });`;
      await Deno.writeTextFile(`${planted}/index.js`, text);
    }
    const load = (code: string) => deno(["eval", "--no-config", code], `${directory}/bundle`);
    // It is loaded where a module asks for it.
    await load(`import { createRequire } from "node:module";
      createRequire("${directory}/bundle/main.js")("cpu-features");`);
    assert.equal(await Deno.readTextFile(trace), "cpu-features\n");
    await Deno.remove(trace);

    const files = [...Deno.readDirSync(`${directory}/bundle`)].map(({ name }) => name);
    const modules = files.filter((name) => name !== "main.js"); // which would run the program
    const code = modules.map((name) => `await import("${directory}/bundle/${name}");`).join("\n");
    await load(`globalThis.__dirname = "/";\n${code}`);
    await assert.rejects(Deno.stat(trace), Deno.errors.NotFound);
  }));

/** What a module says, and what is reported of it; null if it may. */
const MODULES: readonly (readonly [text: string, reported: string | null])[] = [
  [`import "cpu-features";`, `import "cpu-features"`],
  [`import {\n  a,\n  b\n} from 'yaml';`, `from 'yaml'`],
  [`export * from "ssh2";`, `from "ssh2"`],
  [`const a = await import("ssh2");`, `import("ssh2"`],
  ["const a = await import(`ssh2`);", "import(`ssh2`"],
  [`const a = await import(\n  name,\n);`, `import(\n  name,`],
  [`var a = require("cpu-features")();`, `require("cpu-features"`],
  [`var a = __require("./build/sshcrypto.node");`, `__require("./build/sshcrypto.node"`],
  [`var a = require2(name);`, `require2(name);`],
  [`import "../other.js";`, `import "../other.js"`],
  [`import "./gone.js";`, `import "./gone.js"`],
  [`import "fs";`, `import "fs"`], // Deno would search for it
  [`import * as module from "node:module";`, `from "node:module"`],
  [`__require("module").createRequire("/")`, `__require("module"`],
  [`process.getBuiltinModule("module")`, `getBuiltinModule("module"`],
  [`import { a } from "./a.js";\nimport { b } from "node:fs";`, null],
  [`await import("./a.js"); __require("node:fs"); require2("worker_threads");`, null],
  [`var require_a = __commonJS({}); require_a(); requirement(dataset);`, null],
  [`import { createRequire } from "node:module";\nvar r = createRequire("/");`, null],
  [`import { createRequire as a } from "node:module";\nvar r = a(import.meta.url);`, null],
];

for (const [text, reported] of MODULES) {
  const does = reported === null ? "is in order" : "does not go into the program";
  Deno.test(`a module ${does} that says ${JSON.stringify(text)}`, async () => {
    const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
    try {
      await Deno.writeTextFile(`${directory}/a.js`, text);
      const closed = closeModules(directory);
      if (reported === null) return await closed;
      await assert.rejects(closed, {
        message: `The bundle looks modules up outside of itself:\na.js: ${reported}`,
      });
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  });
}

Deno.test("a module's require() gives Node's own modules and no file", async () => {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    const text = `
      import { createRequire as make } from "node:module";
      const load = make(import.meta.url);
      console.log(load("fs") === load("node:fs"), typeof load("fs").readFileSync);
      for (const name of ["./b.cjs", "cpu-features"]) {
        try { console.log(load(name)); } catch { console.log("none"); }
      }`;
    await Deno.mkdir(`${directory}/node_modules/cpu-features`, { recursive: true });
    for (const file of ["b.cjs", "node_modules/cpu-features/index.js"]) {
      await Deno.writeTextFile(`${directory}/${file}`, 'console.log("loaded");');
    }
    await Deno.mkdir(`${directory}/bundle`);
    await Deno.writeTextFile(`${directory}/bundle/a.js`, text.replace("./b.cjs", "../b.cjs"));
    await closeModules(`${directory}/bundle`);
    const said = await deno(["run", "--no-config", "--allow-all", "a.js"], `${directory}/bundle`);
    assert.equal(said, "true function\nundefined\nundefined\n");
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});
