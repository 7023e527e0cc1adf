// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { posix } from "node:path";

/**
 * Who may import whom: a row for each file of src/ and each folder below it. There is no circle, and
 * machine/ and guest/ do not know each other. A file may always import its own folder.
 */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  "main.ts": [
    ...["deno.json", "src/program.ts", "src/terminal.ts", "src/errors.ts", "src/job.ts"],
  ],
  "src/program.ts": [
    ...["src/cli.ts", "src/config.ts", "src/job.ts", "src/stages/"],
    ...["src/errors.ts", "src/exit_status.ts", "src/printer.ts", "src/script_output.ts"],
    ...["src/guest/", "src/libvirt/"], // to make what a Stage holds
    ...["src/doctor/", "src/metrics/", "src/terminal.ts"],
  ],
  "src/metrics/": [
    "src/stages/",
    "src/machine/",
    "src/libvirt/",
    "src/errors.ts",
    "src/trust.ts",
    "src/wait.ts",
  ],
  "src/terminal.ts": ["src/stages/", "src/errors.ts", "src/job.ts", "src/printer.ts"],
  "src/printer.ts": ["src/job.ts", "src/paint.ts", "src/quoted.ts", "src/wait.ts"],
  "src/paint.ts": ["src/job.ts"],
  "src/cli.ts": ["src/errors.ts"],
  "src/config.ts": [
    ...["src/config_schema.ts", "src/config_mistakes.ts", "src/policy_mistakes.ts"],
    ...["src/settings_file.ts", "src/machine_settings.ts", "src/errors.ts"],
  ],
  "src/config_schema.ts": ["src/config_mistakes.ts", "src/machine_settings.ts"],
  "src/config_mistakes.ts": [],
  "src/policy_mistakes.ts": ["src/config_mistakes.ts"],
  "src/settings_file.ts": ["src/trust.ts"],
  "src/trust.ts": ["src/errors.ts"],
  "src/machine_settings.ts": ["src/ipv4.ts"],
  "src/ipv4.ts": [],
  "src/exit_status.ts": ["src/errors.ts", "src/job.ts"],
  "src/job.ts": ["src/errors.ts", "src/sha256.ts"],
  "src/variables_file.ts": ["src/job.ts", "src/errors.ts"],
  "src/policy.ts": [
    ...["src/template_choice.ts", "src/size_choice.ts", "src/config.ts", "src/job.ts"],
    ...["src/machine_settings.ts", "src/errors.ts", "src/quoted.ts"],
  ],
  "src/template_choice.ts": [
    ...["src/config.ts", "src/config_schema.ts", "src/machine_settings.ts"],
    ...["src/errors.ts", "src/quoted.ts"],
  ],
  "src/size_choice.ts": [
    ...["src/config.ts", "src/job.ts", "src/machine_settings.ts"],
    ...["src/errors.ts", "src/quoted.ts"],
  ],
  "src/quoted.ts": [],
  "src/command.ts": [],
  "src/sha256.ts": [],
  "src/script_output.ts": ["src/guest/", "src/job.ts"],
  "src/stages/": [
    ...["src/config.ts", "src/job.ts", "src/variables_file.ts", "src/machine_settings.ts"],
    ...["src/policy.ts", "src/size_choice.ts", "src/template_choice.ts", "src/quoted.ts"],
    "src/paint.ts",
    ...["src/doctor/", "src/machine/", "src/guest/", "src/libvirt/"],
    ...["src/command.ts", "src/errors.ts", "src/ipv4.ts", "src/wait.ts", "src/xml.ts"],
  ],
  "src/doctor/": [
    ...["src/config.ts", "src/machine_settings.ts", "src/template_choice.ts", "src/quoted.ts"],
    "src/paint.ts",
    ...["src/machine/", "src/guest/", "src/libvirt/"],
    ...["src/command.ts", "src/errors.ts", "src/ipv4.ts", "src/read_xml.ts", "src/wait.ts"],
  ],
  "src/machine/": [
    ...["src/libvirt/", "src/machine_settings.ts", "src/ipv4.ts"],
    ...["src/command.ts", "src/errors.ts", "src/read_xml.ts", "src/sha256.ts", "src/wait.ts"],
    "src/xml.ts",
  ],
  "src/guest/": [
    "src/libvirt/",
    ...["src/errors.ts", "src/quoted.ts", "src/wait.ts", "src/xml.ts"],
  ],
  "src/wait.ts": ["src/errors.ts", "src/quoted.ts"],
  "src/xml.ts": [],
  "src/read_xml.ts": [],
  "src/errors.ts": ["src/quoted.ts"],
  "src/libvirt/": ["ffi/"],
  "ffi/": [],
};

/** Single files that may import more than their folder. */
const EXCEPTIONS: Readonly<Record<string, readonly string[]>> = {
  "src/machine/kvm_probe.ts": ["ffi/"], // it asks the kernel, not libvirt
  "src/machine/owner.ts": ["ffi/"], // so does it
  "src/machine/bridge_port.ts": ["ffi/"], // and it
  "src/metrics/metrics_file.ts": ["ffi/"], // and it
  "src/machine/card.ts": ["ffi/"], // and it
  "src/machine/host_load.ts": ["ffi/"], // and it
  "src/machine/host_addresses.ts": ["ffi/"], // and it
  "src/machine/restore.ts": ["ffi/"], // and it
  "src/doctor/host_files.ts": ["ffi/"], // and it
};

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

/** Whether a file is one of these, or below one of these folders. */
function isAmong(file: string, names: readonly string[]): boolean {
  return names.some((name) => name.endsWith("/") ? file.startsWith(name) : file === name);
}

/** The imports of a file that the table does not allow. */
function forbiddenImports(file: string, text: string): string[] {
  const row = Object.keys(MAY_IMPORT).find((row) => isAmong(file, [row]));
  if (row === undefined) return [`${file}: has no row in the table of allowed imports`];
  const allowed = [row, ...MAY_IMPORT[row] ?? [], ...EXCEPTIONS[file] ?? []];
  return importsOf(file, text)
    .filter(({ path }) => /\.\w+$/.test(path) && !isAmong(path, allowed))
    .map(({ at }) => at);
}

Deno.test("no file imports what the table does not let it", () => {
  const forbidden = [...PROGRAM].flatMap(([file, text]) => forbiddenImports(file, text));
  assert.deepEqual(forbidden, []);
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

Deno.test("every file is named for its one subject, with underscores", () => {
  const names = [...ALL.keys()].filter((file) =>
    /(^|\/)((index|utils?)\.ts|.*[^/\w.].*)$/.test(file)
  );
  assert.deepEqual(names, []);
});

Deno.test("the table has a row for nothing that is not there", () => {
  const files = [...PROGRAM.keys()];
  const rows = [...Object.keys(MAY_IMPORT), ...Object.keys(EXCEPTIONS)];
  assert.deepEqual(rows.filter((row) => !files.some((file) => isAmong(file, [row]))), []);
});

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
    ["src/libvirt/domain.ts", "../machine/record.ts"],
    ["src/machine/start.ts", "../guest/ssh.ts"],
    ["src/machine/start.ts", "../config.ts"],
    ["src/machine/start.ts", "../../ffi/libvirt.ts"],
    ["src/guest/ssh.ts", "../machine/start.ts"],
    ["src/guest/ssh.ts", "../job.ts"],
    ["src/guest/ssh.ts", "../stages/stage.ts"],
    ["src/stages/run.ts", "../../ffi/libvirt.ts"],
    ["src/stages/run.ts", "../../main.ts"],
    ["src/stages/run.ts", "../cli.ts"],
    ["src/stages/run.ts", "../program.ts"],
    ["src/wait.ts", "./job.ts"],
    ["src/xml.ts", "./errors.ts"],
    ["main.ts", "./ffi/libvirt.ts"],
    ["src/config.ts", "../tests/test_host.ts"],
  ] as const
) {
  Deno.test(`${file} may not import "${specifier}"`, () => {
    const text = `\n\nimport type { X } from "${specifier}";\n`;
    assert.deepEqual(forbiddenImports(file, text), [
      `${file}:3: import type { X } from "${specifier}";`,
    ]);
  });
}

Deno.test("a file of src/ that is not in the table is refused", () => {
  assert.deepEqual(forbiddenImports("src/new.ts", ""), [
    "src/new.ts: has no row in the table of allowed imports",
  ]);
});
