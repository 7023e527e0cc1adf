// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { posix } from "node:path";

/**
 * The layers, from the top. A file imports files of its own layer and of those below. Of two that fit, the
 * longer holds.
 */
const LAYERS = [
  "main.ts",
  "src/program.ts",
  "src/commands/",
  "src/doctor/",
  "src/cli/",
  "src/metrics/",
  "src/machine/",
  "src/guest/",
  "src/image/",
  "src/policy/",
  "src/job/",
  "src/settings/",
  "src/",
  "src/libvirt/",
  "ffi/",
];

const ROOT = new URL("../", import.meta.url);

/** The paths below a folder, of all files whose names end so. */
async function listFiles(folder: string, ending: RegExp): Promise<string[]> {
  const files: string[] = [];
  for await (const { name, isDirectory } of Deno.readDir(new URL(folder || ".", ROOT))) {
    if (name.startsWith(".") || name === "node_modules") continue;
    if (isDirectory) files.push(...await listFiles(`${folder}${name}/`, ending));
    else if (ending.test(name)) files.push(folder + name);
  }
  return files.sort();
}

async function readFiles(files: readonly string[]): Promise<Map<string, string>> {
  const texts = files.map((file) => Deno.readTextFile(new URL(file, ROOT)));
  return new Map((await Promise.all(texts)).map((text, i) => [files[i] ?? "", text]));
}

const ALL = await readFiles(await listFiles("", /\.(ts|sh)$/));
const PROGRAM = new Map([...ALL].filter(([file]) => /^(main\.ts|src\/.*|ffi\/.*)$/.test(file)));

/** The text with blanks for its comments, so that each line stays where it is. */
function withoutComments(text: string): string {
  const tokens =
    /\/\/.*|\/\*[^]*?\*\/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\[^]|[^`\\])*`/g;
  return text.replace(tokens, (token) => /^\/[/*]/.test(token) ? token.replace(/./g, " ") : token);
}

/** Each match of the pattern in the code of a file, as `file:line: the line`. */
function findLines(file: string, text: string, pattern: RegExp): string[] {
  return [...withoutComments(text).matchAll(pattern)].map((match) => {
    const line = text.slice(0, match.index + match[0].length).split("\n").length;
    return `${file}:${line}: ${text.split("\n")[line - 1]?.trim()}`;
  });
}

const IMPORT =
  /\b(?:import|export)\b[^;"'`]*?\bfrom\s*["']([^"']+)["']|\bimport\s*\(?\s*["'`]([^"'`]+)["'`]/g;

/** What a file imports: its path, or the name of a package, and the place. */
function importsOf(file: string, text: string): { readonly path: string; readonly at: string }[] {
  const places = findLines(file, text, IMPORT);
  return [...withoutComments(text).matchAll(IMPORT)].map((match, i) => {
    const specifier = match[1] ?? match[2] ?? "";
    const path = specifier.startsWith(".") ? posix.join(posix.dirname(file), specifier) : specifier;
    return { path, at: places[i] ?? file };
  });
}

/** The place of a file's layer, 0 for the top; -1 for a file outside of all. */
function layerOf(file: string): number {
  const fitting = LAYERS.filter((layer) => file === layer || file.startsWith(layer));
  const longest = fitting.toSorted((a, b) => b.length - a.length)[0];
  return longest === undefined ? -1 : LAYERS.indexOf(longest);
}

/** The imports of a file that point upwards, or out of the program. */
function upwardImports(file: string, text: string): string[] {
  return importsOf(file, text)
    .filter(({ path }) => /\.ts$/.test(path) && layerOf(path) < layerOf(file))
    .map(({ at }) => at);
}

Deno.test("no import points to a higher layer", () => {
  const upward = [...PROGRAM].flatMap(([file, text]) => upwardImports(file, text));
  assert.deepEqual(upward, []);
});

/** All files that a file imports, and those that they import, and so on. */
function closureOf(file: string): Set<string> {
  const closure = new Set<string>();
  const files = [file];
  for (const one of files) {
    for (const { path } of importsOf(one, PROGRAM.get(one) ?? "")) {
      if (closure.has(path)) continue;
      closure.add(path);
      files.push(path);
    }
  }
  return closure;
}

Deno.test("no file imports itself by way of others", () => {
  assert.deepEqual([...PROGRAM.keys()].filter((file) => closureOf(file).has(file)), []);
});

Deno.test("no file of the program has more than 300 lines", () => {
  const long = [...PROGRAM].filter(([, text]) => text.split("\n").length > 301);
  assert.deepEqual(long.map(([file]) => file), []);
});

Deno.test("no function of the program has more than 50 lines", () => {
  const functions =
    /^( *)(?:(?:export|static|async|get|function\*?) )*#?\w+(?:<.*>)?\([^;\n]*$[^]*?^\1\}$/gm;
  const long = [...PROGRAM].flatMap(([file, text]) =>
    [...text.matchAll(functions)].map(([found]) => found.split("\n"))
      .filter((lines) => lines.length > 50).map(([first]) => `${file}: ${first}`)
  );
  assert.deepEqual(long, []);
});

Deno.test("each layer is there", () => {
  const files = [...PROGRAM.keys()];
  assert.deepEqual(LAYERS.filter((_, i) => !files.some((file) => layerOf(file) === i)), []);
});

Deno.test("no two files of src/ have one name", () => {
  const files = [...PROGRAM.keys()].filter((file) => file.startsWith("src/"));
  const named = Map.groupBy(files, (file) => posix.basename(file));
  assert.deepEqual([...named.values()].filter(({ length }) => length > 1), []);
});

Deno.test("only main.ts reads the arguments and the environment, and ends the process", () => {
  const pattern = /\b(?:Deno|process)\.(?:args|argv|env|exit\w*)\b/g;
  const found = [...PROGRAM].filter(([file]) => file !== "main.ts")
    .flatMap(([file, text]) => findLines(file, text, pattern));
  assert.deepEqual(found, []);
});

Deno.test("every source file states its license in its first three lines", () => {
  const license = /^(#|\/\/) SPDX-License-Identifier: GPL-2\.0-or-later$/m;
  const without = [...ALL].filter(([, text]) =>
    !license.test(text.split("\n").slice(0, 3).join("\n"))
  );
  assert.deepEqual(without.map(([file]) => file), []);
});

Deno.test("no file has a default export", () => {
  const found = [...ALL].filter(([file]) => file.endsWith(".ts"))
    .flatMap(([file, text]) => findLines(file, text, /\bexport\s+default\b|\bas\s+default\b/g));
  assert.deepEqual(found, []);
});

Deno.test("no list or object spreads a literal, which could stand there itself", () => {
  const found: string[] = [];
  const spread = ["ArrayExpression", "ObjectExpression", "TSAsExpression > ArrayExpression"];
  const selector = spread.map((literal) => `SpreadElement > ${literal}`).join(", ");
  const create = (context: Deno.lint.RuleContext) => ({
    [selector]({ range: [start] }: Deno.lint.Node): void {
      const before = context.sourceCode.text.slice(0, start);
      found.push(`${context.filename}:${before.split("\n").length}`);
    },
  });
  const plugin = { name: "house", rules: { spread: { create } } };
  for (const [file, text] of ALL) {
    if (file.endsWith(".ts")) Deno.lint.runPlugin(plugin, file, text);
  }
  assert.deepEqual(found, []);
});

Deno.test("every file is named for its one subject, with underscores", () => {
  const names = [...ALL.keys()].filter((file) =>
    /(^|\/)((index|utils?)\.ts|.*[^/\w.].*)$/.test(file)
  );
  assert.deepEqual(names, []);
});

const STATIC_IMPORT = /^(?:import|export)\s+(?!type\b)[^;"']*?\bfrom\s*"(\.[^"]+\.ts)"/gm;

/** What is loaded with a file, but for what it imports when it needs it. */
function loadedWith(file: string, loaded: Set<string> = new Set()): Set<string> {
  if (loaded.has(file)) return loaded;
  loaded.add(file);
  for (const [, path = ""] of withoutComments(PROGRAM.get(file) ?? "").matchAll(STATIC_IMPORT)) {
    loadedWith(posix.join(posix.dirname(file), path), loaded);
  }
  return loaded;
}

/** What a command loads besides, while the connection to libvirt opens. */
const MEANWHILE: Readonly<Record<string, readonly string[]>> = {
  prepare: ["src/machine/prepare_machine.ts"],
  run: ["src/machine/run_script.ts"],
  cleanup: ["src/machine/kept.ts", "src/machine/remove.ts"],
};

for (
  const [commands, others] of [
    [["config", "explain"], /^ffi\/libvirt|^src\/(doctor|metrics|guest|libvirt\/connection)/],
    [
      ["prepare", "run", "cleanup"],
      /^src\/(doctor|metrics)\/|\/(post_mortem|kvm_probe|warm\/save|standby\/fill)/,
    ],
  ] as const
) {
  Deno.test(`${commands.join(", ")} load nothing that they rarely need`, () => {
    for (const command of commands) {
      const loaded = loadedWith(`src/commands/${command}.ts`, loadedWith("src/program.ts"));
      for (const file of MEANWHILE[command] ?? []) loadedWith(file, loaded);
      assert(loaded.size > 20, command);
      const needless = [...loaded].filter((file) =>
        others.test(file) || /^src\/commands\//.test(file) && !file.endsWith(`/${command}.ts`)
      );
      assert.deepEqual(needless, [], command);
    }
  });
}

/** The files that a stage loads before its first call of libvirt, but for those in {@linkcode STAGES}. */
const ALWAYS = [
  "main.ts",
  "src/program.ts",
  "src/cli/terminal.ts",
  "src/errors.ts",
  "src/job/job.ts",
];
const PACKAGE_IMPORT = /^(?:import|export)\s+(?!type\b)[^;"']*?\bfrom\s*"([^."][^"]*)"/gm;

const SETTINGS = "src/settings/load.ts";
const CONNECTION = "src/libvirt/connection.ts";

/**
 * What a stage needs besides, and the packages and Node's modules that all of it loads, which take most of
 * the time. A script of a job needs neither the settings nor libvirt: the connection master has it run.
 */
const STAGES: Readonly<Record<string, { files: readonly string[]; packages: readonly string[] }>> =
  {
    config: { files: [SETTINGS], packages: ["yaml"] },
    prepare: {
      files: [SETTINGS, CONNECTION],
      packages: ["yaml"],
    },
    run: { files: [], packages: [] },
    cleanup: { files: [SETTINGS, CONNECTION], packages: ["yaml"] },
  };

for (const [stage, { files, packages }] of Object.entries(STAGES)) {
  Deno.test(`${stage} loads ${packages.join(", ") || "no package"} before it does its work`, () => {
    const loaded = new Set<string>();
    for (const file of [...ALWAYS, `src/commands/${stage}.ts`, ...files]) loadedWith(file, loaded);
    const imported = [...loaded].flatMap((file) =>
      [...withoutComments(PROGRAM.get(file) ?? "").matchAll(PACKAGE_IMPORT)].map(([, name]) => name)
    );
    assert.deepEqual([...new Set(imported)].sort(), packages);
  });
}

Deno.test("the check of imports sees every form of them, and no comment", () => {
  const text = `
    import { a } from "./a.ts";
    import type { B } from '../libvirt/b.ts';
    import {
      type C,
      c,
    } from "./c.ts"; // from "./comment.ts"
    export { d } from "./d.ts";
    export * from "./e.ts";
    import "./f.ts";
    const { g } = await import("./g.ts");
    /* import "./comment.ts"; */
    const url = "http://x"; import { h } from "./h.ts";
    export const from = "./no.ts";
    import ssh2 from "ssh2";
  `;
  assert.deepEqual(importsOf("src/machine/x.ts", text).map(({ path }) => path), [
    "src/machine/a.ts",
    "src/libvirt/b.ts",
    ...["c", "d", "e", "f", "g", "h"].map((name) => `src/machine/${name}.ts`),
    "ssh2",
  ]);
});

for (
  const [file, specifier] of [
    ["ffi/memory.ts", "../src/errors.ts"],
    ["src/libvirt/domain.ts", "../errors.ts"],
    ["src/wait.ts", "./job/job.ts"],
    ["src/guest/ssh_connection.ts", "../machine/start.ts"],
    ["src/image/image.ts", "../machine/storage/template.ts"],
    ["src/machine/queue/queue.ts", "../../commands/list.ts"],
    ["src/commands/run.ts", "../program.ts"],
    ["src/program.ts", "../main.ts"],
    ["src/settings/load.ts", "../../tests/fakes/test_host.ts"],
  ] as const
) {
  Deno.test(`${file} may not import "${specifier}"`, () => {
    const text = `\n\nimport type { X } from "${specifier}";\n`;
    assert.deepEqual(upwardImports(file, text), [
      `${file}:3: import type { X } from "${specifier}";`,
    ]);
  });
}
