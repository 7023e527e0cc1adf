// SPDX-License-Identifier: GPL-2.0-or-later
import type * as AnyLine from "./any_line.ts";
import { GLOBAL_OPTIONS, readFields } from "./arguments.ts";
import type { Command, Invocation } from "./command.ts";
import { type Line, readPlainLine } from "./plain_line.ts";
import { PROGRAM } from "./program_name.ts";

/** All commands by their names, each in a module of its own. */
export type Commands = Readonly<Record<string, () => Promise<{ readonly command: Command }>>>;

export interface CommandLine {
  readonly debug: boolean;
  readonly config: string | undefined;
  readonly action: Invocation;
  /** The command and its arguments after `--`, if there is one. */
  readonly guestCommand: readonly string[] | null;
}

/**
 * Parses the command line. The words after `--` are the guest's. Prints and ends the program for
 * `--help`, `--version`, `completions` and mistakes. Only the named command's module is loaded.
 */
export async function parseArguments(
  args: readonly string[],
  { commands, about, output }: {
    readonly commands: Commands;
    /** What `--version` prints. */
    readonly about: string;
    readonly output: AnyLine.CliOutput;
  },
): Promise<CommandLine> {
  const dashes = args.indexOf("--");
  const own = dashes < 0 ? args : args.slice(0, dashes);
  const guestCommand = dashes < 0 ? null : args.slice(dashes + 1);
  const word = firstWord(own);
  const load = word === null || !Object.hasOwn(commands, word) ? undefined : commands[word];
  const modules = await Promise.all((load ? [load] : Object.values(commands)).map((it) => it()));
  const known = modules.map(({ command }) => command);
  const plain = load && known[0] ? readPlainLine(own, known[0]) : null;
  const line = plain ?? await parseAnyLine(own, {
    commands: known,
    about,
    output,
    aboveError: args.length === 0 ? "usage" : "none",
    onError: () => {
      const isCommand = load !== undefined || word === "completions";
      output.stderr(`What to do: Run ${PROGRAM}${isCommand ? ` ${word}` : ""} --help`);
      return output.exit(2);
    },
  });
  const action = line.command.invoke(line.ofCommand);
  action.check(guestCommand);
  return { ...readFields(GLOBAL_OPTIONS, line.global), action, guestCommand };
}

/** Loads the whole parser, which takes longer than everything else that a stage loads. */
async function parseAnyLine(...args: Parameters<typeof AnyLine.parseAnyLine>): Promise<Line> {
  return (await import("./any_line.ts")).parseAnyLine(...args);
}

/** The first argument that is neither an option nor the value of `--config`; null if there is none. */
function firstWord(args: readonly string[]): string | null {
  return args.find((word, i) => !word.startsWith("-") && args[i - 1] !== "--config") ?? null;
}
