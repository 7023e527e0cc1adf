// SPDX-License-Identifier: GPL-2.0-or-later

/** The last lines of a serial console, each behind a bar and harmless: the guest chooses them. */
export function consoleEnd(text: string | null, lines: number): string {
  if (text === null) return "Its serial console cannot be read.";
  const printed = consoleLines(text).slice(-lines);
  if (printed.length === 0) return "Its serial console is empty.";
  return ["The end of its serial console:", ...printed.map((line) => `  | ${line}`)].join("\n");
}

/** The lines of a serial console that are not empty, as harmless as those of {@linkcode consoleEnd}. */
export function consoleLines(text: string): string[] {
  return text
    // deno-lint-ignore no-control-regex
    .replace(/\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])/g, "") // ECMA-48 control sequences: colours, cursor
    .split(/[\r\n]+/)
    .map((line) => line.replace(/\t/g, " ").replace(/\p{C}/gu, "\ufffd").trimEnd().slice(0, 500))
    .filter((line) => line !== "");
}
