// SPDX-License-Identifier: GPL-2.0-or-later
import { LineCounter, parseDocument } from "yaml";
import { SystemFailure } from "../errors.ts";
import { contradictionsIn } from "./contradictions.ts";
import { FILE, RULE, TEMPLATE } from "./file_table.ts";
import { HOST } from "./host_table.ts";
import { isKeys, type Kind, NAME } from "./kinds.ts";
import { MACHINE } from "./machine_table.ts";
import { type Mistake, mistakesOfYaml, mustBe, offsetOf, Place, unknownKey } from "./mistakes.ts";
import type { Members } from "./setting.ts";
import {
  camel,
  type Config,
  DEFAULT_CONFIG,
  fallbacksOf,
  type MachineSettings,
  type Rule,
  type TemplateSettings,
  type Values,
  valuesOf,
} from "./settings.ts";

/** Reads settings from YAML. `file` is for messages. Throws SystemFailure with all mistakes. */
export function parseConfig(yamlText: string, file: string): Config {
  const lineCounter = new LineCounter();
  const { config, mistakes } = readYaml(yamlText, { file, lineCounter });
  if (mistakes.length === 0) return { ...config, file };
  const lines = mistakes.sort((a, b) => a.offset - b.offset).map(({ offset, words }) => {
    const { line, col } = lineCounter.linePos(offset);
    return `${file}:${line}:${col}: ${words}`;
  });
  throw new SystemFailure({
    what: [`The settings have ${lines.length === 1 ? "a mistake" : "mistakes"}:`, ...lines].join(
      "\n",
    ),
    advice: `Edit "${file}"; docs/settings.md lists all settings`,
  });
}

interface PlacedMistake {
  readonly offset: number;
  readonly words: string;
}

function readYaml(
  yamlText: string,
  { file, lineCounter }: { readonly file: string; readonly lineCounter: LineCounter },
): { readonly config: Config; readonly mistakes: PlacedMistake[] } {
  try {
    const document = parseDocument(yamlText, {
      lineCounter,
      prettyErrors: false,
      logLevel: "error",
      uniqueKeys: false, // mistakesOfYaml() knows their names and places better
    });
    const mistakes = mistakesOfYaml(document);
    if (mistakes.some(({ hidesOthers }) => hidesOthers)) {
      return { config: DEFAULT_CONFIG, mistakes };
    }
    const read = readConfig(document.toJS() ?? {});
    const placed = read.mistakes.map((mistake) => ({
      offset: offsetOf(document, mistake),
      words: mistake.words,
    }));
    return { config: read.config, mistakes: [...mistakes, ...placed] };
  } catch (cause) {
    // The parser gives up on what is nested too deep, and on anchors that multiply.
    throw new SystemFailure({
      what: `Cannot parse the settings in "${file}"`,
      cause,
      advice: `Edit "${file}"; docs/settings.md lists all settings`,
    });
  }
}

/** The settings and their mistakes. Contradictions are found only among valid settings. */
function readConfig(raw: unknown): { readonly config: Config; readonly mistakes: Mistake[] } {
  const mistakes: Mistake[] = [];
  const values = readMembers(FILE, raw, fallbacksOf(FILE), new Place(mistakes, FILE));
  const machine = valuesOf(MACHINE, values);
  const config = {
    ...valuesOf(HOST, values),
    file: null,
    machine,
    templates: readTemplates(values.templates, machine, mistakes),
    rules: values.rules.map((rule, i) => readRule(rule, i, mistakes)),
  };
  if (mistakes.length === 0) mistakes.push(...contradictionsIn(config));
  return { config, mistakes };
}

function readTemplates(
  raw: Readonly<Record<string, unknown>>,
  inherited: MachineSettings,
  mistakes: Mistake[],
): Map<string, TemplateSettings> {
  const otherwise = { ...fallbacksOf(TEMPLATE), ...inherited };
  return new Map(
    Object.entries(raw).map(([name, entry]) => {
      const path = ["templates", name];
      if (!NAME.accepts(name)) mistakes.push({ ...mustBe(path, NAME.words, name), atKey: true });
      const place = new Place(mistakes, TEMPLATE, path);
      const { volume, aliases, ...machine } = readMembers(TEMPLATE, entry, otherwise, place);
      return [name, { volume, aliases, machine, ownKeys: new Set(keysIn(entry)) }];
    }),
  );
}

function readRule(raw: unknown, i: number, mistakes: Mistake[]): Rule {
  const place = new Place(mistakes, RULE, ["rules", i]);
  if (raw === null) place.mustBe("keys with values", raw);
  const values = readMembers(RULE, raw, fallbacksOf(RULE), place);
  return { ...values, name: `rule ${i + 1} (rules[${i}])` };
}

/** Each key that has a value here, such as `limits.vcpus`. */
function keysIn(raw: unknown): string[] {
  if (!isKeys(raw)) return [];
  return Object.entries(raw).flatMap(([key, value]) =>
    isKeys(value) ? keysIn(value).map((below) => `${key}.${below}`) : [key]
  );
}

/** The values of these settings in the file, or else the inherited values. */
function readMembers<M extends Members>(
  members: M,
  raw: unknown,
  inherited: Values<M>,
  place: Place,
): Values<M> {
  const known = Object.keys(members);
  if (raw === null) return inherited; // all that would stand below the key is commented out
  if (!isKeys(raw)) {
    const isGroup = place.path !== place.start;
    place.mustBe(isGroup ? `keys with values (${known.join(", ")})` : "keys with values", raw);
    return inherited;
  }
  const values: Record<string, unknown> = { ...inherited };
  for (const [key, value] of Object.entries(raw)) {
    const member = Object.hasOwn(members, key) ? members[key] : undefined;
    const below = place.below(key);
    if (member === undefined) {
      place.mistakes.push(unknownKey(below, known));
    } else if ("members" in member) {
      values[camel(key)] = readMembers(
        member.members,
        value,
        values[camel(key)] as Values<Members>,
        below,
      );
    } else if (isValid(member.kind, value, below)) {
      values[camel(key)] = value;
    }
  }
  return values as Values<M>;
}

function isValid({ words, accepts, items }: Kind<unknown>, value: unknown, place: Place): boolean {
  if (!accepts(value)) {
    place.mustBe(words, value);
    return false;
  }
  if (items === undefined || !Array.isArray(value)) return true;
  return value.map((item, i) => isValid(items, item, place.below(i))).every((isValid) => isValid);
}
