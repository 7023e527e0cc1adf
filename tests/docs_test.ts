// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { posix } from "node:path";
import { parse as parseYaml } from "yaml";
import { parseArguments } from "../src/cli/parser.ts";
import { jobFromEnv } from "../src/job/job.ts";
import { COMMANDS } from "../src/program.ts";
import { parseConfig } from "../src/settings/read.ts";

const ROOT = new URL("../", import.meta.url);

/** Pages that another change brings: a link to them is right already. */
const EXPECTED = ["docs/settings.md"];

/** The paths of all files below a folder. */
function filesBelow(folder: string): string[] {
  return [...Deno.readDirSync(new URL(folder, ROOT))].flatMap(({ name, isDirectory }) =>
    isDirectory ? filesBelow(`${folder}${name}/`) : [folder + name]
  ).sort();
}

function exists(path: string): boolean {
  try {
    Deno.statSync(new URL(path, ROOT));
    return true;
  } catch {
    return false;
  }
}

const MANUAL = ["README.md", ...filesBelow("docs/").filter((path) => path.endsWith(".md"))];
const PAGES = new Map(
  [...MANUAL, "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
    .map((path) => [path, Deno.readTextFileSync(new URL(path, ROOT))]),
);

/** A block of code, without the indentation of the list that it is in. */
interface Block {
  readonly page: string;
  /** What stands behind the fence, such as `sh`. */
  readonly kind: string;
  readonly text: string;
}

function blocksOf(page: string, text: string): Block[] {
  return [...text.matchAll(/^( *)```(.*)\n([^]*?)^ *```$/gm)].map(
    ([, indent = "", kind = "", code = ""]) => ({
      page,
      kind,
      text: code.replaceAll(new RegExp(`^${indent}`, "gm"), ""),
    }),
  );
}

function withoutBlocks(text: string): string {
  return text.replaceAll(/^ *```[^]*?^ *```$/gm, "");
}

const BLOCKS = [...PAGES].flatMap(([page, text]) => blocksOf(page, text));

/** The blocks of one kind. */
function blocks(kind: string): Block[] {
  return BLOCKS.filter((block) => block.kind === kind);
}

/** The code within the lines of a page. */
function codeIn(text: string): string[] {
  return [...withoutBlocks(text).matchAll(/`([^`]+)`/g)].map(([, code = ""]) =>
    code.replaceAll("\n", " ")
  );
}

/** The anchor that GitLab and GitHub give to a heading. */
function anchorOf(heading: string): string {
  return heading.replaceAll(/[^\p{L}\p{N} _-]/gu, "").toLowerCase().replaceAll(" ", "-");
}

function anchorsIn(text: string): string[] {
  return [...withoutBlocks(text).matchAll(/^#+ (.*)$/gm)].map(([, heading = ""]) =>
    anchorOf(heading)
  );
}

Deno.test("README.md has at most 180 lines", () => {
  const lines = (PAGES.get("README.md") ?? "").split("\n").length - 1;
  assert(lines <= 180, `${lines} lines`);
});

Deno.test("README.md leads to every page of the manual", () => {
  const readme = PAGES.get("README.md") ?? "";
  const missing = MANUAL.filter((page) => page !== "README.md" && !readme.includes(`](${page}`));
  assert.deepEqual(missing, []);
});

Deno.test("each link to a file and to a heading resolves", () => {
  const broken = [...PAGES].flatMap(([page, text]) =>
    [...withoutBlocks(text).matchAll(/\]\(([^)\s]+)\)/g)].map(([, target = ""]) => target)
      .filter((target) => !/^\w+:/.test(target))
      .filter((target) => {
        const [file = "", anchor] = target.split("#");
        const path = file === "" ? page : posix.join(posix.dirname(page), file);
        if (EXPECTED.includes(path) && !exists(path)) return false;
        if (!exists(path)) return true;
        return anchor !== undefined && !anchorsIn(PAGES.get(path) ?? "").includes(anchor);
      })
      .map((target) => `${page}: ${target}`)
  );
  assert.deepEqual(broken, []);
});

class Exited extends Error {}

/** What the program prints for these arguments before it would run a command, and its exit status. */
async function parse(
  args: readonly string[],
): Promise<{ status: number | null; stdout: string; stderr: string }> {
  const result = { status: null as number | null, stdout: "", stderr: "" };
  const exit = (status: number): never => {
    result.status = status;
    throw new Exited();
  };
  const stdout = (text: string) => void (result.stdout += text);
  const stderr = (text: string) => void (result.stderr += text);
  try {
    const output = { stdout, stderr, exit };
    await parseArguments(args, { commands: COMMANDS, about: "1", output });
  } catch (error) {
    if (!(error instanceof Exited)) return { ...result, status: 2, stderr: String(error) };
  }
  return result;
}

/** What the program says against these arguments, or null. */
async function refusal(args: readonly string[]): Promise<string | null> {
  const { status, stderr } = await parse(args);
  return status === null || status === 0 ? null : stderr;
}

/** The arguments of each call of libvirt-gci in lines for a shell. */
function callsIn(shell: string): string[][] {
  const lines = shell.replaceAll(/\\\n */g, "").replaceAll(/ +#.*$/gm, "");
  return [...lines.matchAll(/(?<![^\s(])libvirt-gci( +[^&|;)<>\n]+)/g)]
    .map(([, args = ""]) => args.trim().split(/ +/));
}

/** Each call in a page: in blocks for a shell, behind the prompt of a console, and in the text. */
function callsOf(page: string, text: string): string[][] {
  const shells = blocksOf(page, text).map(({ kind, text }) =>
    kind === "sh"
      ? text
      : kind === "console"
      ? [...text.matchAll(/^[$#] (.*)$/gm)].map(([, line]) => line).join("\n")
      : ""
  );
  const inText = codeIn(text).filter((code) => /(^|[ (])libvirt-gci -?-?[a-z]/.test(code));
  return [...shells, ...inText].flatMap(callsIn);
}

Deno.test("every call of libvirt-gci in the manual is one that the program takes", async () => {
  let count = 0;
  for (const [page, text] of PAGES) {
    for (const args of callsOf(page, text)) {
      count++;
      assert.equal(await refusal(args), null, `${page}: ${args.join(" ")}`);
    }
  }
  assert(count > 60, `${count} calls`);
});

Deno.test("the check of calls sees them in every form", async () => {
  const page = [
    "Call `libvirt-gci list`, `source <(libvirt-gci no-such)`, or `libvirt-gci`.",
    "```sh",
    "FOO=1 libvirt-gci gc --dry-run   # and not: libvirt-gci comment",
    "true && libvirt-gci --debug \\",
    "  keep mine; ls /etc/libvirt-gci x",
    "```",
    "```console",
    "$ libvirt-gci doctor | cat",
    "libvirt-gci output",
    "```",
  ].join("\n");
  assert.deepEqual(callsOf("x.md", page).map((args) => args.join(" ")).sort(), [
    "--debug keep mine",
    "doctor",
    "gc --dry-run",
    "list",
    "no-such",
  ]);
  assert.match(await refusal(["no-such"]) ?? "", /no-such/);
  assert.match(await refusal(["gc", "--older-than", "soon"]) ?? "", /older-than|number/);
});

Deno.test("every block of settings in the manual is accepted", () => {
  const found = blocks("yaml");
  assert(found.length > 5);
  for (const { page, text } of found) parseConfig(text, page);
});

Deno.test("every block of a job in the manual asks by variables that count", async () => {
  const found = blocks("yaml .gitlab-ci.yml");
  assert(found.length > 2);
  for (const { page, text } of found) {
    const variables: Record<string, unknown> = parseYaml(text).test.variables;
    const env = Object.entries(variables).map(([key, value]) => [`CUSTOM_ENV_${key}`, `${value}`]);
    const { template, requests } = await jobFromEnv(Object.fromEntries(env));
    const asked = [template, ...Object.values(requests)].filter((value) => value !== null);
    assert.equal(asked.length, env.length, `${page}: ${text}`);
  }
});

Deno.test("every block has a kind that is checked, or that no test can check", () => {
  const checked = ["sh", "console", "yaml", "yaml .gitlab-ci.yml"];
  const known = [...checked, "yaml prometheus", "text", "mermaid"];
  assert.deepEqual(BLOCKS.filter(({ kind }) => !known.includes(kind)), []);
});

Deno.test("every block for a shell is bash, and names files and tasks that are there", async () => {
  const tasks = JSON.parse(await Deno.readTextFile(new URL("deno.json", ROOT))).tasks;
  for (const { page, text } of blocks("sh")) {
    const { success, stderr } = await new Deno.Command("bash", { args: ["-n", "-c", text] })
      .output();
    assert(success, `${page}: ${text}${new TextDecoder().decode(stderr)}`);
    for (const [, task = ""] of text.matchAll(/\bdeno(?:@\S+)? task (\S+)/g)) {
      assert(task in tasks, `${page}: there is no task "${task}"`);
    }
    const spelled = text.replaceAll(/(\S+)\{(\w+),(\w+)\}/g, "$1$2 $1$3");
    for (const [path] of spelled.matchAll(/(?<=^| )(?:systemd|make_base_image)\/\S+/gm)) {
      assert(exists(path), `${page}: there is no "${path}"`);
    }
  }
});

/** What a job's log says that libvirt-gci does not write. */
const WORDS_OF_GITLAB = [
  "argument list too long",
  "step-runner: command not found",
  "execution took longer than",
  "Job's log exceeded limit of",
  "Missing gitlab-runner",
];

Deno.test("each message that the manual explains is one of the program's, or GitLab's", () => {
  const source = filesBelow("src/").map((file) => Deno.readTextFileSync(new URL(file, ROOT)))
    .join("\n").replaceAll(/^ *(\/\/|\/?\*).*$/gm, "").replaceAll(/["`] \+\n *["`]/g, "");
  const page = PAGES.get("docs/debugging.md") ?? "";
  const [table = ""] = /^\| the log says [^]*?\n\n/m.exec(page) ?? [];
  const messages = [...table.matchAll(/^\| ([^|]+)/gm)].flatMap(([, cell = ""]) => codeIn(cell));
  assert(messages.length > 20);
  const unknown = messages.filter((message) =>
    !source.includes(message) && !WORDS_OF_GITLAB.includes(message)
  );
  assert.deepEqual(unknown, []);
});

const COMMANDS_PAGE = "docs/commands.md";

/** The command, or those of which its first argument names one. */
async function withCommandsBelow(name: string): Promise<string[][]> {
  const { command } = await COMMANDS[name]?.() ?? {}; // the parser's own have none
  return command?.commands?.map((below) => [name, below.name]) ?? [[name]];
}

Deno.test("the manual has the help of every command (UPDATE=1 writes it)", async () => {
  const page = PAGES.get(COMMANDS_PAGE) ?? "";
  const help = (await parse(["--help"])).stdout;
  const commands = [...help.matchAll(/^(?:Usage:| {6}) libvirt-gci ([a-z]+)/gm)]
    .map(([, command = ""]) => command).filter((command) => command !== "help");
  assert(commands.length > 10);
  const sections: string[] = [];
  for (const words of await Promise.all(commands.map(withCommandsBelow)).then((it) => it.flat())) {
    const text = (await parse([...words, "--help"])).stdout.trimEnd();
    sections.push(`### ${words.join(" ")}\n\n\`\`\`text\n${text}\n\`\`\`\n`);
  }
  const [before = ""] = page.split(/(?<=^## Reference\n)/m);
  const expected = `${before}\n${sections.join("\n")}`;
  if (Deno.env.has("UPDATE")) await Deno.writeTextFile(new URL(COMMANDS_PAGE, ROOT), expected);
  else assert.equal(page, expected);
});

Deno.test("CONTRIBUTING.md has a line for each folder, and for each file at the top of src", () => {
  const text = PAGES.get("CONTRIBUTING.md") ?? "";
  const folders = (folder: string) =>
    [...Deno.readDirSync(new URL(folder, ROOT))].filter(({ name }) => !name.startsWith("."))
      .map(({ name, isDirectory }) => isDirectory ? `${folder}${name}/` : `${folder}${name}`);
  const wanted = [
    ...folders("src/"),
    ...folders("tests/").filter((path) =>
      path.endsWith("/") && !exists(path.replace("tests", "src"))
    ),
    "main.ts",
    "ffi/",
    "docs/",
    "make_base_image/",
    "packaging/",
    "systemd/",
    ".ci/run",
  ];
  const lines = text.split("\n");
  assert.deepEqual(
    wanted.filter((path) => !lines.some((line) => line.trimStart().startsWith(`${path} `))),
    [],
  );
});
