// SPDX-License-Identifier: GPL-2.0-or-later
import { type Document, isAlias, isMap, isNode, isScalar, isSeq, visit } from "yaml";
import { HOST } from "./host_table.ts";
import { isKeys } from "./kinds.ts";
import { type Members, settingsIn } from "./setting.ts";

/** The way to a value of the file, by keys and by places in lists. */
export type Path = readonly (string | number)[];

export interface Mistake {
  readonly path: Path;
  /** Whether the key is wrong, not its value. */
  readonly atKey?: boolean;
  readonly words: string;
}

export interface YamlMistake {
  readonly offset: number;
  readonly words: string;
  /** Whether the settings cannot be looked at until it is gone. */
  readonly hidesOthers?: boolean;
}

export function mustBe(path: Path, words: string, value: unknown): Mistake {
  const given = value === null
    ? "nothing"
    : typeof value === "object"
    ? (isKeys(value) ? "keys with values" : "a list")
    : (typeof value === "string" ? JSON.stringify(value) : String(value));
  const where = path.length === 0 ? "the file" : path.join(".");
  return { path, words: `"${where}" must be ${words}, not ${given}` };
}

/** Something of the file, and where its mistakes go. */
export class Place {
  constructor(
    readonly mistakes: Mistake[],
    /** All settings of the file, of the template or of the rule that it is in. */
    readonly table: Members,
    /** The path to where they begin. */
    readonly start: Path = [],
    readonly path: Path = start,
  ) {}

  below(step: string | number): Place {
    return new Place(this.mistakes, this.table, this.start, [...this.path, step]);
  }

  mustBe(words: string, value: unknown): void {
    this.mistakes.push(mustBe(this.path, words, value));
  }
}

/** The mistake of a key that is unknown in its place. */
export function unknownKey({ path, start, table }: Place, known: readonly string[]): Mistake {
  const steps = path.slice(start.length);
  const near = nearest(steps.join("."), table) ?? nearest(String(steps.at(-1)), table);
  const words = start.length > 0 && Object.hasOwn(HOST, String(steps[0]))
    ? "applies to the whole host only: set it at the top"
    : `is unknown; ${near ? `did you mean "${near}"?` : `known here: ${known.join(", ")}`}`;
  return { path, atKey: true, words: `"${path.join(".")}" ${words}` };
}

export function mistakesOfYaml(document: Document): YamlMistake[] {
  const mistakes: YamlMistake[] = [];
  for (const { name, pos, message } of [...document.errors, ...document.warnings]) {
    mistakes.push({ offset: pos[0], words: message, hidesOthers: name === "YAMLParseError" });
  }
  visit(document, {
    Alias: (_, alias) => {
      if (alias.resolve(document) !== undefined) return;
      const words = `Undefined anchor "&${alias.source}"`;
      mistakes.push({ offset: startOf(alias) ?? 0, words, hidesOthers: true });
    },
    Map: (_, { items }) => {
      mistakes.push(...mistakesOfKeys(items.map(({ key }) => key)));
    },
  });
  return mistakes;
}

function mistakesOfKeys(keys: readonly unknown[]): YamlMistake[] {
  // To name a key that is a list or has keys itself can take more memory than there is.
  const strange = keys.find((key) => isNode(key) && !isScalar(key));
  if (strange !== undefined) {
    const words = "A key must be a name here";
    return [{ offset: startOf(strange) ?? 0, words, hidesOthers: true }];
  }
  const names = keys.map((key) => nameOf(key));
  return keys.flatMap((key, i) => {
    const name = nameOf(key);
    if (names.indexOf(name) === i) return [];
    return [{ offset: startOf(key) ?? 0, words: `"${name}" is set twice` }];
  });
}

/** The name that a key of YAML gets in JavaScript: there, 34 is a number. */
function nameOf(key: unknown): string {
  return String(isScalar(key) ? key.value : key);
}

export function offsetOf(document: Document, { path, atKey }: Mistake): number {
  let key: unknown = null;
  let value: unknown = document.contents;
  for (const step of path) {
    const parent = isAlias(value) ? value.resolve(document) : value;
    // The last of two equal keys counts.
    const pair = isMap(parent) ? parent.items.findLast((item) => nameOf(item.key) === step) : null;
    key = pair?.key;
    value = isSeq(parent) ? parent.items[Number(step)] : pair?.value;
  }
  return (atKey ? startOf(key) : startOf(value)) ?? startOf(value) ?? startOf(key) ?? 0;
}

function startOf(node: unknown): number | undefined {
  return isNode(node) ? node.range?.[0] : undefined;
}

/**
 * The key that was probably meant, with its group or without: a letter or two differ, or its end is
 * missing.
 */
function nearest(word: string, table: Members): string | undefined {
  const settings = settingsIn(table).flatMap(([key, { guess = key }]) =>
    [key, key.replaceAll(".", "_"), key.replace(/^.*\./, ""), guess]
      .map((spelling) => ({ key, spelling }))
  );
  const groups = Object.keys(table).map((key) => ({ key, spelling: key }));
  const known = [...settings, ...groups]
    .map((of) => ({ ...of, changes: distance(word.toLowerCase(), of.spelling) }))
    .sort((a, b) => a.changes - b.changes || depthOf(a.key) - depthOf(b.key));
  if (known[0] && known[0].changes <= Math.min(2, word.length / 3)) return known[0].key;
  return known.find(({ spelling }) => spelling.startsWith(`${word}_`))?.key;
}

function depthOf(key: string): number {
  return key.split(".").length;
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
