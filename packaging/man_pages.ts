// SPDX-License-Identifier: GPL-2.0-or-later
import denoJson from "../deno.json" with { type: "json" };
import { type Field, GLOBAL_OPTIONS } from "../src/cli/arguments.ts";
import type { Command } from "../src/cli/command.ts";
import { PROGRAM } from "../src/cli/program_name.ts";
import { COMMANDS } from "../src/program.ts";
import { ROOT } from "./deno.ts";
import { escapeRoff, roffOfMarkdown } from "./roff.ts";

const SUMMARY = "run GitLab CI jobs in libvirt virtual machines";

/** libvirt-gci(1): the prose of docs/commands.md, and all commands as their tables have them. */
export async function commandsPage(date: Date): Promise<string> {
  const markdown = await Deno.readTextFile(`${ROOT}docs/commands.md`);
  const [prose = ""] = markdown.split(/^## Reference$/m);
  const modules = await Promise.all(Object.values(COMMANDS).map((load) => load()));
  return page([
    heading(PROGRAM, { section: 1, summary: SUMMARY, date }),
    `.SH SYNOPSIS\n.B ${escapeRoff(PROGRAM)}\n.I COMMAND\n.RI [ OPTION ...]\n.RI [ ARGUMENT ...]\n`,
    ".SH DESCRIPTION\n",
    roffOfMarkdown(prose),
    ".SH COMMANDS\n",
    ...modules.map(({ command }) => roffOfCommand(command)),
    ".SH OPTIONS OF ALL COMMANDS\n",
    ...Object.values(GLOBAL_OPTIONS).map(roffOfField),
    ".TP\n\\fB\\-\\-help\\fR\nPrint help, also after a command.\n",
    ".TP\n\\fB\\-\\-version\\fR\nPrint the version.\n",
    ".SH SEE ALSO\n.BR libvirt\\-gci.yaml (5),\n.BR gitlab\\-runner (1),\n.BR virsh (1)\n",
  ]);
}

/** libvirt-gci.yaml(5): docs/settings.md, which is made from the table of settings. */
export async function settingsPage(date: Date): Promise<string> {
  return page([
    heading(`${PROGRAM}.yaml`, { section: 5, summary: `settings of ${PROGRAM}`, date }),
    ".SH DESCRIPTION\n",
    roffOfMarkdown(await Deno.readTextFile(`${ROOT}docs/settings.md`)),
    ".SH FILES\n.TP\n.I /etc/libvirt\\-gci/config.yaml\nThe settings of the host.\n",
    ".SH SEE ALSO\n.BR libvirt\\-gci (1)\n",
  ]);
}

/** A heading begins a paragraph itself. */
function page(parts: readonly string[]): string {
  return parts.join("").replaceAll(/^(\.S[HS] .*\n)\.PP\n/gm, "$1");
}

function heading(
  name: string,
  { section, summary, date }: {
    readonly section: number;
    readonly summary: string;
    readonly date: Date;
  },
): string {
  const [title, source] = [name.toUpperCase(), `${PROGRAM} ${denoJson.version}`].map(escapeRoff);
  const day = date.toISOString().slice(0, 10);
  return [
    `.TH "${title}" ${section} ${day} "${source}"\n`,
    ".nr HY 0\n.ad l\n", // no word of a command is hyphenated
    `.SH NAME\n${escapeRoff(name)} \\- ${escapeRoff(summary)}\n`,
  ].join("");
}

function roffOfCommand({ name, description, footer, fields }: Command): string {
  const own = Object.values(fields);
  const usage = own.map(usageOf).join(" ");
  return [
    `.SS ${escapeRoff(`${PROGRAM} ${name}`)} ${usage}\n`,
    `${proseOf(description)}\n`,
    ...own.map(roffOfField),
    ...(footer === undefined ? [] : [`.PP\n${proseOf(footer)}\n`]),
  ].join("");
}

/** Names of options are in backquotes. */
function proseOf(words: string): string {
  return words.split("`").map((part, i) => i % 2 === 0 ? escapeRoff(part) : bold(part)).join("");
}

function bold(words: string): string {
  return `\\fB${escapeRoff(words)}\\fR`;
}

function italic(words: string): string {
  return `\\fI${escapeRoff(words)}\\fR`;
}

function usageOf({ names, metavar, times }: Field<unknown>): string {
  const words = [...names.slice(-1).map(escapeRoff), ...(metavar ? [italic(metavar)] : [])];
  const text = words.join("\\~");
  return times === "once" ? text : times === "any" ? `[${text}...]` : `[${text}]`;
}

function roffOfField({ names, metavar, doc }: Field<unknown>): string {
  const named = names.map(bold).join(", ");
  const words = [named, metavar === null ? "" : italic(metavar)].filter((it) => it !== "");
  return `.TP\n${words.join(" ")}\n${proseOf(doc)}\n`;
}
