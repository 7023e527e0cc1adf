// SPDX-License-Identifier: GPL-2.0-or-later
import type * as v from "valibot";
import { isAlias, isMap, isNode, isScalar, isSeq, visit } from "yaml";
import type { Document } from "yaml";

/** A mistake in the settings. */
export interface Mistake {
  /** Where it stands in the file. */
  readonly offset: number;
  readonly words: string;
  /** Whether the settings cannot be looked at until it is gone. */
  readonly hidesOthers?: boolean;
}

/** A key of these is one that valibot leaves out without a word. */
const NO_KEYS: readonly string[] = ["__proto__", "constructor", "prototype"];

/** What is wrong with the file as YAML, and with its keys whatever they mean. */
export function mistakesOfYaml(document: Document): Mistake[] {
  const mistakes: Mistake[] = [];
  for (const { name, pos, message } of [...document.errors, ...document.warnings]) {
    mistakes.push({ offset: pos[0], words: message, hidesOthers: name === "YAMLParseError" });
  }
  visit(document, {
    Alias: (_, alias) => {
      if (alias.resolve(document) !== undefined) return;
      const words = `Nothing before has the anchor "&${alias.source}"`;
      mistakes.push({ offset: startOf(alias) ?? 0, words, hidesOthers: true });
    },
    Map: (_, { items }) => {
      mistakes.push(...mistakesOfKeys(items.map(({ key }) => key)));
    },
  });
  return mistakes;
}

function mistakesOfKeys(keys: readonly unknown[]): Mistake[] {
  // To name a key that is a list or has keys itself can take more memory than there is.
  const strange = keys.find((key) => isNode(key) && !isScalar(key));
  if (strange !== undefined) {
    const words = "A key must be a name here";
    return [{ offset: startOf(strange) ?? 0, words, hidesOthers: true }];
  }
  const names = keys.map((key) => nameOf(key));
  return keys.flatMap((key, i) => {
    const name = nameOf(key);
    const words = NO_KEYS.includes(name)
      ? `"${name}" cannot be a key`
      : names.indexOf(name) < i
      ? `"${name}" stands here again`
      : null;
    return words === null ? [] : [{ offset: startOf(key) ?? 0, words }];
  });
}

/** The name that a key of YAML gets in JavaScript: there, 34 is a number. */
function nameOf(key: unknown): string {
  return String(isScalar(key) ? key.value : key);
}

/** What the schema says of the settings, put in words and in its place. */
export function mistakesOfValues(
  issues: readonly v.BaseIssue<unknown>[],
  document: Document,
): Mistake[] {
  return issues.map((issue) => {
    const path = (issue.path ?? []).map(({ key }) => key);
    const atKey = issue.type === "never" || issue.path?.at(-1)?.origin === "key";
    return { offset: offsetOf(document, path, atKey), words: say(path, issue) };
  });
}

/** Whoever asks for a name must get one template. */
export function mistakesOfAliases(settings: unknown, document: Document): Mistake[] {
  const templates = isKeys(settings) && settings["templates"];
  if (!isKeys(templates)) return [];
  const owners = new Map<unknown, string>(Object.keys(templates).map((name) => [name, name]));
  const mistakes: Mistake[] = [];
  for (const [template, ofTemplate] of Object.entries(templates)) {
    const aliases = isKeys(ofTemplate) && ofTemplate["aliases"];
    if (!Array.isArray(aliases)) continue;
    for (const [i, alias] of aliases.entries()) {
      const owner = owners.get(alias);
      owners.set(alias, owner ?? template);
      if (owner === undefined) continue;
      const path = ["templates", template, "aliases", i];
      const words = `"${path.join(".")}" must be a new name: "${alias}" is the template "${owner}"`;
      mistakes.push({ offset: offsetOf(document, path, false), words });
    }
  }
  return mistakes;
}

/** A job that could ask for another job's disk as its template would read it. */
export function mistakeOfPools(document: Document): Mistake {
  const words = `"overlay_pool" must be another pool than "template_pool"`;
  return { offset: offsetOf(document, ["overlay_pool"], false), words };
}

/** Where in the file the value of this path stands, or its key. */
export function offsetOf(document: Document, path: readonly unknown[], atKey: boolean): number {
  let key: unknown = null;
  let value: unknown = document.contents;
  for (const step of path) {
    const parent = isAlias(value) ? value.resolve(document) : value;
    // Of two keys that are the same, the last counts.
    const pair = isMap(parent) ? parent.items.findLast((item) => nameOf(item.key) === step) : null;
    key = pair?.key;
    value = isSeq(parent) ? parent.items[Number(step)] : pair?.value;
  }
  return (atKey ? startOf(key) : startOf(value)) ?? startOf(value) ?? startOf(key) ?? 0;
}

function startOf(node: unknown): number | undefined {
  return isNode(node) ? node.range?.[0] : undefined;
}

function say(path: readonly unknown[], { type, message, input }: v.BaseIssue<unknown>): string {
  const where = path.length === 0 ? "the file" : path.join(".");
  if (type === "never") {
    const near = nearest(String(path.at(-1)), message.split(", "));
    return `"${where}" is unknown; ` +
      (near ? `did you mean "${near}"?` : `known here: ${message}`);
  }
  const given = input === null
    ? "nothing"
    : typeof input === "object"
    ? (isKeys(input) ? "keys with values" : "a list")
    : (typeof input === "string" ? JSON.stringify(input) : String(input));
  return `"${where}" must be ${message}, not ${given}`;
}

/** The word that this one was meant to be: a letter or two differ, or its end is missing. */
function nearest(word: string, known: readonly string[]): string | undefined {
  const [best] = known.map((other) => ({ other, changes: distance(word.toLowerCase(), other) }))
    .sort((a, b) => a.changes - b.changes);
  if (best && best.changes <= Math.min(2, word.length / 3)) return best.other;
  return known.find((other) => other.startsWith(`${word}_`));
}

/** How many letters to add, remove or change to make one word of the other (Levenshtein's). */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 0; i < a.length; i++) {
    const next = [i + 1];
    for (let j = 0; j < b.length; j++) {
      const changed = (row[j] ?? 0) + Number(a[i] !== b[j]);
      next.push(Math.min(changed, (row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}

/** Valibot itself takes a list for an object with the keys 0, 1, … */
export function isKeys(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
