// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { commandsPage, settingsPage } from "../../packaging/man_pages.ts";
import { escapeRoff, roffOfMarkdown } from "../../packaging/roff.ts";
import { GLOBAL_OPTIONS } from "../../src/cli/arguments.ts";
import { COMMANDS } from "../../src/program.ts";
import { FILE, RULE, TEMPLATE_ONLY } from "../../src/settings/file_table.ts";
import { settingsIn } from "../../src/settings/setting.ts";

const DATE = new Date("2020-01-02T03:04:05Z");
const PAGES = [["libvirt-gci.1", commandsPage], ["libvirt-gci.yaml.5", settingsPage]] as const;

/** What a program prints of a page, on both outputs; null where there is no such program. */
async function printed(
  [program = "", ...args]: readonly string[],
  page: string,
): Promise<string | null> {
  const file = await Deno.makeTempFile({ prefix: "libvirt-gci-test-" });
  try {
    await Deno.writeTextFile(file, page);
    const { stdout, stderr } = await new Deno.Command(program, {
      args: [...args, file],
      env: { LC_ALL: "C.UTF-8", MANROFFSEQ: "", MANWIDTH: "2000", MAN_KEEP_FORMATTING: "" },
    }).output();
    return [stderr, stdout].map((it) => new TextDecoder().decode(it)).join("");
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  } finally {
    await Deno.remove(file);
  }
}

const read = (page: string) => printed(["man", "-l"], page);
const mandoc = (page: string) => printed(["mandoc", "-Tlint", "-Wwarning"], page);
const [HAS_MAN, HAS_MANDOC] = await Promise.all([
  read(".TH A 1\n.SH NAME\na \\- b\n").then((text) => text?.includes("a - b") ?? false),
  mandoc("").then((text) => text !== null),
]);

for (const [name, makePage] of PAGES) {
  Deno.test({
    name: `groff has no warning of ${name}`,
    ignore: !HAS_MAN,
    fn: async () => {
      const warnings = (page: string) => printed(["man", "--warnings", "-Z", "-l"], page);
      const said = async (page: string) => (await warnings(page))?.match(/^.*: warning: .*$/gm);
      const page = await makePage(DATE);
      assert.equal(await said(page), null);
      assert.match(`${await said(`${page}.nosuch\n`)}`, /nosuch/);
    },
  });

  Deno.test({
    name: `mandoc has no warning of ${name}`,
    ignore: !HAS_MANDOC,
    fn: async () => {
      const page = await makePage(DATE);
      assert.equal(await mandoc(page), "");
      assert.match(`${await mandoc(`${page}.nosuch\n`)}`, /nosuch/);
    },
  });
}

Deno.test({
  name: "libvirt-gci(1) has every command with its options, as its help has them",
  ignore: !HAS_MAN,
  fn: async () => {
    const text = await read(await commandsPage(DATE)) ?? "";
    assert.match(text, /^LIBVIRT-GCI\(1\)/);
    assert.match(text, /libvirt-gci - run GitLab CI jobs/);
    const commands = await Promise.all(Object.values(COMMANDS).map((load) => load()));
    const fields = commands.map(({ command }) => [command.name, command.fields] as const);
    for (const [name, options] of [...fields, ["", GLOBAL_OPTIONS] as const]) {
      assert(text.includes(` libvirt-gci ${name}`), name);
      for (const { names, metavar, doc } of Object.values(options)) {
        const term = [names.join(", "), metavar ?? ""].join(" ").trim();
        const at = text.indexOf(doc.replaceAll("`", ""));
        assert(at > 0, `${name}: ${doc}`);
        assert(text.includes(`\n       ${term}`), `${name}: ${term}`);
      }
    }
  },
});

Deno.test({
  name: "libvirt-gci.yaml(5) has every setting with what it does",
  ignore: !HAS_MAN,
  fn: async () => {
    const text = await read(await settingsPage(DATE)) ?? "";
    assert.match(text, /^LIBVIRT-GCI\.YAML\(5\)/);
    const settings = [FILE, TEMPLATE_ONLY, RULE].flatMap(settingsIn);
    assert(settings.length > 50);
    for (const [key, { kind, doc }] of settings) {
      const words = doc.replaceAll("`", "").replaceAll(/\[(.*?)\]\((http.*?)\)/g, "$1 ($2)");
      assert(text.includes(words), `${key}: ${words}`);
      if (["templates", "rules"].includes(key)) continue; // which have a section each
      assert.match(text, RegExp(`^ +${key.replaceAll(".", "\\.")}( |$)`, "m"));
      assert(text.includes(`Value: ${kind.words}.`), key);
    }
  },
});

Deno.test("no character of a text is taken for roff's markup", async () => {
  const text = `.TH is "no" request\n'so is this \\fBnot bold\\fR -x \`y\` ~z ^w`;
  if (HAS_MAN) {
    const page = `.TH A 1\n.SH NAME\na \\- b\n.SH X\n.nf\n${escapeRoff(text)}\n.fi\n`;
    const lines = (await read(page) ?? "").split("\n").map((line) => line.trim());
    for (const line of text.split("\n")) assert(lines.includes(line), lines.join("\n"));
  }
  assert.equal(escapeRoff("a\n.b"), "a\n\\&.b");
});

for (
  const [what, markdown, roff] of [
    ["a heading", "# Title\n\n## Some words\n\n### ssh\n", ".SH SOME WORDS\n.SS ssh\n"],
    [
      "a paragraph",
      "See [the page](x.md) and [RFC](https://a/b),\nor `--x\ny`.\n",
      ".PP\nSee the page and RFC (https://a/b),\nor \\fB\\-\\-x y\\fR\\&.\n",
    ],
    ["a list", "- one\n  more\n- two\n", ".IP \\(bu 2\none\nmore\n.IP \\(bu 2\ntwo\n"],
    ["code", "```sh\na -b\n\nc\n```\n", ".PP\n.RS 4\n.EX\na \\-b\n\nc\n.EE\n.RE\n"],
    [
      "a table",
      "| key | value | |\n| --- | --- | --- |\n| `a` | 1 | Does a. |\n",
      ".TP\n\\fBa\\fR\nDoes a.\n.br\nValue: 1.\n",
    ],
    ["a comment", "<!-- UPDATE=1 -->\n\nText.\n", ".PP\nText.\n"],
  ] as const
) {
  Deno.test(`${what} of the manual becomes roff`, () => {
    assert.equal(roffOfMarkdown(markdown), roff);
  });
}
