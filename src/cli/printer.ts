// SPDX-License-Identifier: GPL-2.0-or-later
import type { Env } from "../job/job.ts";
import { toVisible } from "../quoted.ts";
import type { Progress } from "../wait.ts";

interface LineStream {
  readonly isTerminal: () => boolean;
  readonly printLine: (text: string) => void;
}

interface ProgressStream extends LineStream {
  readonly write: (text: string) => void;
  /** The terminal's width in characters, 0 if it does not know. */
  readonly columns: () => number;
}

const ERASE_LINE = "\r\x1b[K"; // ECMA-48, EL
const USUAL_COLUMNS = 80;
const COLOURS = { red: 31, green: 32, yellow: 33 } as const; // of ECMA-48, SGR

/** Colours the text, if colours are wanted. The text must be fit to print already. */
export type Paint = (colour: keyof typeof COLOURS, text: string) => string;

/** Leaves all text as it is. */
export const noPaint: Paint = (_, text) => text;

/** The paint for a stream: none unless it is a terminal with colours (https://no-color.org). */
export function paintFor(stream: Pick<LineStream, "isTerminal">, env: Env): Paint {
  if (!isSmart(stream, env) || env["NO_COLOR"]) return noPaint;
  return (colour, text) => `\x1b[${COLOURS[colour]}m${text}\x1b[0m`;
}

/** Whether the stream is a terminal that can do more than print. */
function isSmart({ isTerminal }: Pick<LineStream, "isTerminal">, env: Env): boolean {
  const type = env["TERM"] ?? "dumb";
  return type !== "" && type !== "dumb" && isTerminal();
}

/** Prints our own lines, so that no terminal acts on their content. */
export class Printer {
  /** Shows at the terminal what the program waits for; null without a terminal. */
  readonly progress: Progress | null;
  /** For {@linkcode printVisible}. */
  readonly paint: Paint;
  readonly #paintError: Paint;
  readonly #stdout: ProgressStream;
  readonly #stderr: LineStream;
  #shown = "";

  constructor(
    { stdout, stderr }: { readonly stdout: ProgressStream; readonly stderr: LineStream },
    env: Env,
  ) {
    this.#stdout = stdout;
    this.#stderr = stderr;
    this.progress = isSmart(stdout, env) ? (line) => this.#show(line) : null;
    this.paint = paintFor(stdout, env);
    this.#paintError = paintFor(stderr, env);
  }

  print(text: string): void {
    this.printVisible(toVisible(text));
  }

  /** Prints coloured text, which must have been made visible already. */
  printVisible(text: string): void {
    this.progress?.(null);
    this.#stdout.printLine(text);
  }

  warn(text: string): void {
    this.#printError(this.#paintError("yellow", toVisible(text)));
  }

  debug(text: string): void {
    this.#printError(`debug: ${toVisible(text)}`);
  }

  fail(program: string, text: string): void {
    this.#printError(`${this.#paintError("red", `${program}:`)} ${toVisible(text)}`);
  }

  #printError(text: string): void {
    this.progress?.(null);
    this.#stderr.printLine(text);
  }

  #show(line: string | null): void {
    const columns = this.#stdout.columns() || USUAL_COLUMNS;
    // In the last column, some terminals go on to the next line.
    const text = line === null ? "" : cut(toVisible(line.replaceAll("\n", " ")), columns - 1);
    if (text === this.#shown) return;
    this.#stdout.write(ERASE_LINE + text);
    this.#shown = text;
  }
}

const FIRST_WIDE = 0x1100; // Hangul, before all others that may take two columns

function cut(text: string, columns: number): string {
  let room = columns;
  let result = "";
  for (const character of text) {
    room -= (character.codePointAt(0) ?? 0) < FIRST_WIDE ? 1 : 2;
    if (room < 0) break;
    result += character;
  }
  return result;
}
