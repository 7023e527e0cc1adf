// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { builtinModules } from "node:module";
import denoJson from "../../deno.json" with { type: "json" };
import { packageNames } from "../fakes/package_names.ts";
import { call, command, e2eTest, prepared, PROGRAM } from "./bed.ts";

const MACHINE = "outside";

/** What a search for a module, a package or a configuration looks at, wherever that is. */
const SEARCHED =
  /^(node_modules|package\.json|package-lock\.json|deno\.(jsonc?|lock)|import_map\.json|jsr\.json|\.npmrc|\.env|index\.([cm]?[jt]s|json|node|wasm))$/;

/** The names that a module can have in a bundle: of packages, and Node's own without `node:`. */
const NAMES = [
  ...await packageNames(),
  ...builtinModules.filter((name) => !name.startsWith("node:")),
];

/** Code that tells in this file that it ran. */
function traced(file: string, name: string): string {
  return `Deno.writeTextFileSync(${JSON.stringify(file)}, "${name}\\n", { append: true });\n`;
}

/** Puts packages of all names there; each tells in `trace` that it was loaded. */
function plantPackages(directory: string, trace: string): void {
  for (const name of NAMES) {
    const planted = `${directory}/${name}`;
    Deno.mkdirSync(planted, { recursive: true });
    // Of what require() finds, a compiled program runs libraries and these.
    Deno.writeTextFileSync(`${planted}/package.json`, '{ "main": "index.mjs" }');
    Deno.writeTextFileSync(`${planted}/index.mjs`, traced(trace, planted));
    Deno.writeTextFileSync(`${planted}/index.node`, "no library");
  }
}

/** What others on the host, or the program's environment, could have it take for a part of itself. */
interface Outside extends AsyncDisposable {
  /** Variables that name what is planted. */
  readonly env: Record<string, string>;
  readonly cwd: string;
  /** What TMPDIR names. */
  readonly tmp: string;
  /** The directory of what only the variables name. */
  readonly named: string;
  /** Which packages and files were loaded. */
  readonly loaded: () => string;
}

async function plant(): Promise<Outside> {
  await using undo = new AsyncDisposableStack();
  const directory = Deno.makeTempDirSync({ prefix: "libvirt-gci-e2e-" });
  undo.defer(() => Deno.removeSync(directory, { recursive: true }));
  const trace = `${directory}/trace`;
  Deno.writeTextFileSync(trace, "");
  const [tmp, cwd, home, named] = [
    `${directory}/tmp`,
    `${directory}/cwd`,
    `${directory}/home`,
    `${directory}/named`,
  ] as const;
  for (const place of [tmp, cwd, home, named]) {
    Deno.mkdirSync(place);
    plantPackages(`${place}/node_modules`, trace);
    for (const name of ["package.json", "deno.json", "deno.jsonc", "deno.lock", ".npmrc", ".env"]) {
      Deno.writeTextFileSync(`${place}/${name}`, "{ not to be read");
    }
  }
  for (const place of ["/tmp/node_modules", "/node_modules"]) {
    Deno.mkdirSync(place); // which fails if there is one
    undo.defer(() => Deno.removeSync(place, { recursive: true }));
    plantPackages(place, trace);
  }
  const [required, imported] = [`${named}/required.cjs`, `${named}/imported.mjs`] as const;
  for (const file of [required, imported]) Deno.writeTextFileSync(file, traced(trace, file));
  const env = {
    TMPDIR: tmp,
    HOME: home,
    NODE_OPTIONS: `--require ${required} --import ${imported}`,
    NODE_PATH: `${named}/node_modules`,
    NODE_EXTRA_CA_CERTS: `${named}/package.json`,
    NODE_ICU_DATA: named,
    NODE_V8_COVERAGE: `${named}/coverage`,
    DENO_CERT: `${named}/package.json`,
    DENO_COVERAGE_DIR: `${named}/coverage`,
    DENO_DIR: `${named}/deno`,
    DENO_V8_FLAGS: "--help", // with which V8 would only print its options
  };
  const planted = undo.move();
  return {
    env,
    cwd,
    tmp,
    named,
    loaded: () => Deno.readTextFileSync(trace),
    [Symbol.asyncDispose]: () => planted.disposeAsync(),
  };
}

/** The paths that the processes of this trace named. */
function pathsIn(strace: string): string[] {
  return [...strace.matchAll(/"((?:[^"\\]|\\.)*)"/g)].map(([, path = ""]) => path);
}

// main.ts is no compiled program: Deno looks for its configuration and its packages.
const ignore = !Deno.env.has("LIBVIRT_GCI");

e2eTest("the program takes no module and no configuration from outside of itself", async () => {
  await using _ = await prepared(MACHINE);
  await using outside = await plant();
  const { cwd, env, named, tmp } = outside;

  // A program that does load the planted module shows that it would be seen.
  const code = `import { createRequire } from "node:module";
    createRequire("${tmp}/file.js")("cpu-features");`;
  await command([Deno.execPath(), "eval", "--no-config", code]);
  const found = `${tmp}/node_modules/cpu-features\n`;
  assert.equal(outside.loaded(), found);

  const wrapper = ["env", "--chdir", cwd];
  const version = await command([...wrapper, ...PROGRAM, "--version"], env);
  assert.deepEqual({ ...version, stdout: "" }, { status: 0, stdout: "", stderr: "" });
  assert(version.stdout.startsWith(`libvirt-gci ${denoJson.version} (`), version.stdout);
  const help = await command([...wrapper, ...PROGRAM, "--help"], env);
  assert.equal(help.status, 0, help.stderr);
  assert.match(help.stdout, /^Usage: /m);
  await run(wrapper, env);
  assert.equal(outside.loaded(), found, "the program loaded what is not its own");

  const file = `${cwd}/strace`;
  const strace = ["strace", "--follow-forks", "--trace=%file", "--string-limit=4096", "-o", file];
  await run([...wrapper, ...strace], { ...env, TMPDIR: "/tmp" });
  assert.equal(outside.loaded(), found, "the program loaded what is not its own");
  const paths = pathsIn(await Deno.readTextFile(file));
  assert(paths.some((path) => path.endsWith("libvirt.so.0")), "strace saw no file of the program");
  const isOutside = (path: string): boolean =>
    path.startsWith(named) || path.split("/").some((name) => SEARCHED.test(name));
  assert.deepEqual(paths.filter(isOutside), []);
}, { ignore });

/** Runs a command in the machine, for which the program loads ssh2, which looks for native code. */
async function run(wrapper: readonly string[], env: Record<string, string>): Promise<void> {
  const ran = await call(["run", "--machine", MACHINE, "--", "echo", "ran"], { env, wrapper });
  assert.deepEqual(ran, { status: 0, stdout: "ran\n", stderr: "" });
}
