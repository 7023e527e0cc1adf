// SPDX-License-Identifier: GPL-2.0-or-later

/** One of the ways to log in that a server offers. */
export interface Challenge {
  /** In lower case, such as `bearer`. */
  readonly scheme: string;
  /** By their names in lower case. */
  readonly parameters: ReadonlyMap<string, string>;
}

const WORD = "[!#$%&'*+.^_`|~0-9A-Za-z-]+";
const SEPARATOR = /[\s,]*/y;
const PARAMETER = new RegExp(`(${WORD})[ \\t]*=[ \\t]*(?:"((?:[^"\\\\]|\\\\.)*)"|(${WORD}))`, "y");
/** A scheme, and what it may have instead of parameters. */
const SCHEME = new RegExp(
  `(${WORD})(?:[ \\t]+[\\w.~+/-]+=*(?=[ \\t]*(?:,|$)))?(?=[ \\t,]|$)`,
  "y",
);

/**
 * Reads the header WWW-Authenticate, or several that were joined: RFC 9110, 11.6.1. Gives what stands before
 * anything malformed.
 */
export function parseChallenges(header: string): Challenge[] {
  const challenges: { scheme: string; parameters: Map<string, string> }[] = [];
  let position = 0;
  const take = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = position;
    const match = pattern.exec(header);
    if (match !== null) position = pattern.lastIndex;
    return match;
  };
  for (take(SEPARATOR); position < header.length; take(SEPARATOR)) {
    const [, name, text, word = ""] = take(PARAMETER) ?? [];
    const scheme = name === undefined ? take(SCHEME)?.[1] : undefined;
    if (name !== undefined) {
      challenges.at(-1)?.parameters.set(name.toLowerCase(), text?.replace(/\\(.)/g, "$1") ?? word);
    } else if (scheme !== undefined) {
      challenges.push({ scheme: scheme.toLowerCase(), parameters: new Map() });
    } else break;
  }
  return challenges;
}
