// SPDX-License-Identifier: GPL-2.0-or-later
import { object, or } from "@optique/core/constructs";
import { runParserSync } from "@optique/core/facade";
import { type Message, message, optionName, text } from "@optique/core/message";
import { map, multiple, optional } from "@optique/core/modifiers";
import type { Parser } from "@optique/core/parser";
import { argument, command as optiqueCommand, flag, option } from "@optique/core/primitives";
import { string } from "@optique/core/valueparser";
import { type Field, GLOBAL_OPTIONS } from "./arguments.ts";
import type { Command } from "./command.ts";
import type { Line } from "./plain_line.ts";
import { PROGRAM } from "./program_name.ts";

/** How the parser prints, and ends the program for `--help` and mistakes. */
export interface CliOutput {
  readonly stdout: (text: string) => void;
  readonly stderr: (text: string) => void;
  readonly exit: (status: number) => never;
}

/**
 * Parses any command line. For `--help`, `--version`, `completions` and mistakes, prints and ends the
 * program: mistakes by `onError`.
 */
export function parseAnyLine(
  args: readonly string[],
  { commands, about, aboveError, output, onError }: {
    readonly commands: readonly Command[];
    /** What `--version` prints. */
    readonly about: string;
    readonly aboveError: "usage" | "none";
    readonly output: CliOutput;
    readonly onError: () => never;
  },
): Line {
  const { debug, config } = GLOBAL_OPTIONS;
  const parser = object({
    debug: parserOf(debug),
    config: parserOf(config),
    line: or(...commands.map(parserOfCommand)),
  });
  const { line, ...global } = runParserSync(parser, PROGRAM, args, {
    brief: message`Run GitLab CI jobs in throw-away libvirt virtual machines.`,
    help: { command: true, option: true, onShow: () => output.exit(0) },
    version: { option: true, value: about, onShow: () => output.exit(0) },
    completion: { command: { names: ["completions"] }, onShow: output.exit },
    aboveError,
    onError,
    stdout: output.stdout,
    stderr: output.stderr,
    termWidth: "auto",
  });
  return { global, ...line };
}

function parserOfCommand(command: Command): Parser<"sync", Omit<Line, "global">, unknown> {
  const { name, description, footer, fields, commands } = command;
  const help = {
    description: messageOf(description),
    ...footer === undefined ? {} : { footer: messageOf(footer) },
  };
  if (commands !== undefined) {
    return optiqueCommand(name, or(...commands.map(parserOfCommand)), help);
  }
  const parsers = Object.entries(fields).map(([key, field]) => [key, parserOf(field)] as const);
  return map(
    optiqueCommand(name, object(Object.fromEntries(parsers)), help),
    (ofCommand) => ({ command, ofCommand }),
  );
}

function parserOf(
  { names, metavar, doc, times, form }: Field<unknown>,
): Parser<"sync", readonly string[], unknown> {
  const help = { description: messageOf(doc) };
  const [name = "--", ...others] = names;
  if (metavar === null) return map(optional(flag(name, ...others, help)), (is) => is ? [name] : []);
  const value = form === undefined ? string({ metavar }) : string({
    metavar,
    pattern: form.pattern,
    errors: { patternMismatch: messageOf(form.hint) },
  });
  const once = names.length === 0 ? argument(value, help) : option(name, ...others, value, help);
  if (times === "any") return multiple(once);
  if (times === "once") return map(once, (value) => [value]);
  return map(optional(once), (value) => value === undefined ? [] : [value]);
}

/** Names of options are in backquotes. */
function messageOf(words: string): Message {
  return words.split("`").map((part, i) => i % 2 === 0 ? text(part) : optionName(part));
}
