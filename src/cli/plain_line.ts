// SPDX-License-Identifier: GPL-2.0-or-later
import { type Fields, type Given, GLOBAL_OPTIONS } from "./arguments.ts";
import type { Command } from "./command.ts";

/** A parsed command line. */
export interface Line {
  /** The options of every command. */
  readonly global: Given;
  readonly command: Command;
  readonly ofCommand: Given;
}

/**
 * Parses a command line in its plainest form, as GitLab Runner writes it. Null leaves it to any_line.ts,
 * which knows every form and every mistake, and takes longer.
 */
export function readPlainLine(args: readonly string[], command: Command): Line | null {
  if (command.commands !== undefined) return null;
  const global: Part = { fields: GLOBAL_OPTIONS, given: {} };
  const own: Part = { fields: command.fields, given: {} };
  const words = args.values();
  let part = global;
  for (const word of words) {
    if (part === global && word === command.name) part = own;
    else if (!take(word, words, part)) return null;
  }
  const isWhole = part === own &&
    Object.entries(own.fields).every(([key, { times }]) =>
      times !== "once" || own.given[key] !== undefined
    );
  return isWhole ? { global: global.given, command, ofCommand: own.given } : null;
}

/** The words before the command's name, or after it. */
interface Part {
  readonly fields: Fields;
  readonly given: Record<string, readonly string[]>;
}

/** Takes a word, and the next if that is its value. False leaves the line to any_line.ts. */
function take(
  word: string,
  next: Iterator<string, undefined>,
  { fields, given }: Part,
): boolean {
  const isOption = word.startsWith("-");
  const [name = "", inWord] = word.startsWith("--") ? word.split(/=(.*)/s) : [word];
  const found = Object.entries(fields).find(([key, { names, times }]) =>
    isOption
      ? names.some((it) => it === name)
      : names.length === 0 && (times === "any" || given[key] === undefined)
  );
  if (found === undefined) return false;
  const [key, { metavar, form, times }] = found;
  if (times !== "any" && given[key] !== undefined) return false;
  if (metavar === null && inWord !== undefined) return false;
  const takesNext = isOption && metavar !== null && inWord === undefined;
  const value = takesNext ? next.next().value : inWord ?? word;
  if (!value || takesNext && value.startsWith("-")) return false;
  if (form !== undefined && !form.pattern.test(value)) return false;
  given[key] = [...given[key] ?? [], value];
  return true;
}
