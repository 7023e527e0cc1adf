// SPDX-License-Identifier: GPL-2.0-or-later
import { isBuiltin } from "node:module";
import { deno, Failed, ROOT } from "./deno.ts";
import { readSource } from "./source.ts";

/**
 * Native code that packages load if it is there, by package and file. It is not built for us. In its
 * place the bundle has a module that throws, so that ssh2 takes its own JavaScript and Node's crypto.
 */
const NATIVE = [
  ["ssh2", "lib/protocol/crypto/build/Release/sshcrypto.node"],
  ["cpu-features", "build/Release/cpufeatures.node"],
] as const;

/**
 * Bundles main.ts and all its imports into this directory, which is emptied first. Gives the file that
 * starts the program. It can load no module from outside of the directory but Node's own: Deno would
 * search a module by its name in /tmp/node_modules too, where every user of the host can put one. Throws
 * {@linkcode Failed}.
 */
export async function bundle(directory: string): Promise<string> {
  const packages = `${directory}.packages`; // beside it, since no configuration is to be above the bundle
  await remove(directory);
  try {
    await installPackages(packages);
    await deno([
      "bundle",
      "--quiet",
      ...packagesOf(packages),
      "--code-splitting",
      "--outdir",
      directory,
      "main.ts",
    ]);
  } finally {
    await remove(packages);
  }
  const main = `${directory}/main.js`;
  const { commit, time } = await readSource();
  const head = [
    'globalThis.__dirname = "/"; // ssh2 reads it, as a CommonJS module may\n',
    `globalThis.libvirtGciCommit = ${JSON.stringify(commit)};\n`,
  ].join("");
  await Deno.writeTextFile(main, head + await Deno.readTextFile(main));
  await closeModules(directory);
  for await (const { name } of Deno.readDir(directory)) { // the program has the files' times in it
    await Deno.utime(`${directory}/${name}`, time, time);
  }
  return main;
}

/** Installs the packages of deno.lock, with modules in the place of native code. */
async function installPackages(directory: string): Promise<void> {
  await remove(directory);
  await Deno.mkdir(directory, { recursive: true });
  for (const name of ["deno.json", "deno.lock"]) {
    await Deno.copyFile(`${ROOT}${name}`, `${directory}/${name}`);
  }
  await deno(["install", "--quiet", ...packagesOf(directory)]);
  const store = `${directory}/node_modules/.deno`;
  const versions = await Array.fromAsync(Deno.readDir(store), ({ name }) => name);
  for (const [name, file] of NATIVE) {
    for (const version of versions.filter((it) => it.startsWith(`${name}@`))) {
      const path = `${store}/${version}/node_modules/${name}/${file}.js`;
      await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), { recursive: true });
      await Deno.writeTextFile(path, 'throw new Error("The program has no native code");\n');
    }
  }
}

/** Options for Deno to take the packages of deno.lock from this directory, and no others. */
function packagesOf(directory: string): string[] {
  return ["--frozen", "--node-modules-dir=auto", "--config", `${directory}/deno.json`];
}

/**
 * Limits the modules in this directory to each other and Node's own. Throws {@linkcode Failed}, with
 * what is left.
 */
export async function closeModules(directory: string): Promise<void> {
  const files = await Array.fromAsync(Deno.readDir(directory), ({ name }) => name);
  const open: string[] = [];
  for (const file of files) {
    const path = `${directory}/${file}`;
    const text = withoutCreateRequire(await Deno.readTextFile(path));
    await Deno.writeTextFile(path, text);
    open.push(...outsideLookups(text, files).map((lookup) => `${file}: ${lookup}`));
  }
  if (open.length === 0) return;
  throw new Failed(`The bundle looks modules up outside of itself:\n${open.join("\n")}`);
}

/** The text with a require() for Node's own modules only, in place of one that searches. */
function withoutCreateRequire(text: string): string {
  return text.replace(
    /\bimport \{ createRequire(?: as (\w+))? \} from "node:module";/g,
    (_, name = "createRequire") => `const ${name} = () => process.getBuiltinModule;`,
  );
}

/** A module's name in import and export; a name, or an expression for it, in import() and require(). */
const LOOKUP =
  /\b(?:from|import)\s*(["'])(?<imported>.*?)\1|\b(?<call>import|_*require\d*|getBuiltinModule)\s*\(\s*(?:(["'`])(?<called>.*?)\4|[^\s)].*)/g;

/**
 * The modules that a module's text looks up, besides these files beside it and Node's own. It finds too
 * many rather than too few, such as those in a comment.
 */
function outsideLookups(text: string, files: readonly string[]): string[] {
  return [...text.matchAll(LOOKUP)].filter(({ groups = {} }) => {
    const name = groups["imported"] ?? groups["called"] ?? "";
    if (/^(node:)?module$/.test(name)) return true; // it has another createRequire()
    const isImport = (groups["call"] ?? "import") === "import";
    if (isImport && !name.startsWith("node:")) return !files.some((file) => name === `./${file}`);
    return !isBuiltin(name);
  }).map(([found]) => found.trim());
}

async function remove(path: string): Promise<void> {
  await Deno.remove(path, { recursive: true }).catch(() => {}); // there may be none
}
