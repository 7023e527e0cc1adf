// SPDX-License-Identifier: GPL-2.0-or-later

const MOST_CHARACTERS = 60;

/** A job's own word, fit for a message: in quotes, cut, and without anything a terminal acts on. */
export function quoted(word: string): string {
  const cut = word.length > MOST_CHARACTERS ? `${word.slice(0, MOST_CHARACTERS)}…` : word;
  return toVisible(JSON.stringify(cut));
}

const MOST_FOREIGN_CHARACTERS = 2000;

/** Foreign text, fit for a message: cut, further lines indented, system errors in plain words. */
export function foreignWords(words: string): string {
  const isLong = words.length > MOST_FOREIGN_CHARACTERS;
  const cut = isLong ? `${words.slice(0, MOST_FOREIGN_CHARACTERS)}…` : words;
  return plainWords(cut.trimEnd()).replace(/\s*\n(?: {2})?/g, "\n  ");
}

/** Errors for which Node has only a name. Deno has words for the others. */
const MEANINGS: Readonly<Record<string, string>> = {
  EACCES: "permission denied",
  ECONNREFUSED: "connection refused",
  ECONNRESET: "the other side closed the connection",
  EHOSTUNREACH: "no route to host",
  ENETUNREACH: "network is unreachable",
  ENOENT: "no such file or directory",
  EPIPE: "the other side closed the connection",
  ETIMEDOUT: "no answer in time",
};

/** `permission denied: "/file"` for Deno's and Node's own words. Other words stay as they are. */
function plainWords(words: string): string {
  const deno = /^([^\n(]+) \(os error \d+\)(?:: [^\n']*(?:'(.*)')?.*)?$/.exec(words);
  if (deno !== null) {
    const [, meaning = "", paths] = deno;
    const plain = meaning.charAt(0).toLowerCase() + meaning.slice(1);
    return paths === undefined ? plain : `${plain}: "${paths.replace("' -> '", '" to "')}"`;
  }
  const [, name = "", where] = /^[a-z]+ (E[A-Z]+)(?: ([^\n]*))?$/.exec(words) ?? [];
  const meaning = MEANINGS[name];
  if (meaning === undefined) return words;
  return where === undefined ? meaning : `${meaning}: "${where}"`;
}

/**
 * The text with `\u` escapes for characters that JSON leaves as they are but a reader would not see.
 */
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
