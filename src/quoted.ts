// SPDX-License-Identifier: GPL-2.0-or-later

const MOST_CHARACTERS = 60;

/** A job's own word as a message may show it: in quotes, cut, and nothing a terminal acts on. */
export function quoted(word: string): string {
  const cut = word.length > MOST_CHARACTERS ? `${word.slice(0, MOST_CHARACTERS)}…` : word;
  return toVisible(JSON.stringify(cut));
}

const MOST_FOREIGN_CHARACTERS = 2000;

/**
 * Words that are not ours, and may be a guest's, as a message may have them: cut, and with further lines
 * indented, so that they pass for none of ours.
 */
export function foreignWords(words: string): string {
  const isLong = words.length > MOST_FOREIGN_CHARACTERS;
  const cut = isLong ? `${words.slice(0, MOST_FOREIGN_CHARACTERS)}…` : words;
  return cut.trimEnd().replace(/\s*\n/g, "\n  ");
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
