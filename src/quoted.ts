// SPDX-License-Identifier: GPL-2.0-or-later

const MOST_CHARACTERS = 60;

/** A job's own word as a message may show it: in quotes, cut, and nothing a terminal acts on. */
export function quoted(word: string): string {
  const cut = word.length > MOST_CHARACTERS ? `${word.slice(0, MOST_CHARACTERS)}…` : word;
  return toVisible(JSON.stringify(cut));
}

/** The text with `\u` escapes for what JSON leaves as it is but a reader would not see. */
export function toVisible(json: string): string {
  return json.replace(
    /[\p{C}\p{Zl}\p{Zp}]/gu,
    (character) =>
      character === "\n"
        ? character
        : character.replace(/[^]/g, (unit) =>
          `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`),
  );
}
