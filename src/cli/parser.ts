// SPDX-License-Identifier: GPL-2.0-or-later
import { object, or } from "@optique/core/constructs";
import { runParserSync } from "@optique/core/facade";
import { message } from "@optique/core/message";
import { optional } from "@optique/core/modifiers";
import { option } from "@optique/core/primitives";
import { string } from "@optique/core/valueparser";
import { switchFlag } from "./arguments.ts";
import { type Command, type Invocation, PROGRAM } from "./command.ts";

/** All commands by their names, each in a module of its own. */
export type Commands = Readonly<Record<string, () => Promise<{ readonly command: Command }>>>;

/** What the command line asks for. */
export interface CommandLine {
  readonly debug: boolean;
  /** The settings file that it names. */
  readonly config: string | undefined;
  readonly action: Invocation;
  /** The command and its arguments after `--`, if there is one. */
  readonly guestCommand: readonly string[] | null;
}

/** What the parser prints, and how it ends the program for `--help` and mistakes. */
export interface CliOutput {
  readonly stdout: (text: string) => void;
  readonly stderr: (text: string) => void;
  readonly exit: (status: number) => never;
}

/**
 * Reads the command line. What follows `--` belongs to the guest, whatever it looks like. For `--help`,
 * `--version`, `completions` and mistakes, prints and ends the program: mistakes with 2. Only the module
 * of the command is loaded, unless it is none.
 */
export async function parseArguments(
  args: readonly string[],
  { commands, version, output }: {
    readonly commands: Commands;
    readonly version: string;
    readonly output: CliOutput;
  },
): Promise<CommandLine> {
  const dashes = args.indexOf("--");
  const own = dashes < 0 ? args : args.slice(0, dashes);
  const guestCommand = dashes < 0 ? null : args.slice(dashes + 1);
  const word = firstWord(own);
  const load = word === null || !Object.hasOwn(commands, word) ? undefined : commands[word];
  const modules = await Promise.all((load ? [load] : Object.values(commands)).map((it) => it()));
  const parser = object({
    debug: switchFlag("--debug", message`Print each libvirt call and the stack of errors.`),
    config: optional(
      option("--config", string({ metavar: "FILE" }), {
        description:
          message`The settings file, instead of /etc/libvirt-gci/config.yaml or, if there is none, ~/.config/libvirt-gci/config.yaml.`,
      }),
    ),
    action: or(...modules.map(({ command }) => command)),
  });
  const isCommand = load !== undefined || word === "completions";
  const parsed = runParserSync(parser, PROGRAM, own, {
    brief: message`Run GitLab CI jobs in throw-away libvirt virtual machines.`,
    help: { command: true, option: true, onShow: () => output.exit(0) },
    version: { option: true, value: version, onShow: () => output.exit(0) },
    completion: { command: { names: ["completions"] }, onShow: output.exit },
    aboveError: args.length === 0 ? "usage" : "none",
    onError: () => {
      output.stderr(`What to do: See ${PROGRAM}${isCommand ? ` ${word}` : ""} --help`);
      return output.exit(2);
    },
    stdout: output.stdout,
    stderr: output.stderr,
    termWidth: "auto",
  });
  parsed.action.check(guestCommand);
  return { ...parsed, guestCommand };
}

/** The first argument that is neither an option nor the value of `--config`; null if there is none. */
function firstWord(args: readonly string[]): string | null {
  return args.find((word, i) => !word.startsWith("-") && args[i - 1] !== "--config") ?? null;
}
