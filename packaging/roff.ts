// SPDX-License-Identifier: GPL-2.0-or-later

/** A text as roff prints it, without markup. */
export function escapeRoff(text: string): string {
  const escaped = text.replaceAll("\\", "\\e").replaceAll("-", "\\-").replaceAll("^", "\\(ha")
    .replaceAll("~", "\\(ti").replaceAll("`", "\\(ga").replaceAll("'", "\\(aq");
  return escaped.replaceAll(/^\./gm, "\\&.");
}

/**
 * A page of the manual in roff's `man` macros, for `man`. It knows the Markdown that the manual uses, and
 * leaves out the title and comments. Of a table's row, the first cell is a term; the head names the others.
 */
export function roffOfMarkdown(markdown: string): string {
  const text = markdown.replaceAll(/<!--[^]*?-->\n/g, "");
  const blocks = [
    ...text.matchAll(/^```.*\n[^]*?^```$|^#+ .*$|^(?:[^#`\n]|`(?!``)).*(?:\n(?!\n).*)*/gm),
  ];
  return blocks.map(([block]) => roffOfBlock(block.trimEnd())).join("");
}

function roffOfBlock(block: string): string {
  if (block.startsWith("```")) {
    const code = block.split("\n").slice(1, -1).join("\n");
    return `.PP\n.RS 4\n.EX\n${escapeRoff(code)}\n.EE\n.RE\n`;
  }
  if (block.startsWith("# ")) return "";
  if (block.startsWith("## ")) return `.SH ${inline(block.slice(3).toUpperCase())}\n`;
  if (block.startsWith("### ")) return `.SS ${inline(block.slice(4))}\n`;
  if (block.startsWith("|")) return roffOfTable(block);
  if (block.startsWith("- ")) {
    const items = block.slice(2).split(/\n- /);
    return items.map((item) => `.IP \\(bu 2\n${inline(item)}\n`).join("");
  }
  return `.PP\n${inline(block)}\n`;
}

function roffOfTable(block: string): string {
  const [head = [], , ...rows] = block.split("\n").map((line) =>
    line.split("|").slice(1, -1).map((cell) => cell.trim())
  );
  return rows.map(([term = "", ...cells]) => {
    const named = cells.map((cell, i) => [head[i + 1] ?? "", cell] as const)
      .sort(([a], [b]) => Number(a !== "") - Number(b !== ""));
    const said = named.map(([name, cell]) =>
      name === "" ? cell : `${name[0]?.toUpperCase()}${name.slice(1)}: ${cell}.`
    );
    return `.TP\n${inline(term)}\n${said.map(inline).join("\n.br\n")}\n`;
  }).join("");
}

/** Code is bold. A link within the manual is its words alone. */
function inline(markdown: string): string {
  return markdown.split(/(`[^`]*`)/).map((part) => {
    if (part.startsWith("`")) {
      return `\\fB${escapeRoff(part.slice(1, -1).replaceAll("\n", " "))}\\fR`;
    }
    const plain = part.replaceAll(
      /\[([^\]]*)\]\(([^)]*)\)/g,
      (_, words, target) => /^\w+:/.test(target) ? `${words} (${target})` : words,
    );
    return escapeRoff(plain.replaceAll("**", ""));
  }).join("").replaceAll(/\n +/g, "\n");
}
