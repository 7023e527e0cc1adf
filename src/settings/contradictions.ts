// SPDX-License-Identifier: GPL-2.0-or-later
import type { Mistake } from "./mistakes.ts";
import type { Config, Rule } from "./settings.ts";

/** Settings that are valid by themselves, but not together. */
export function contradictionsIn(config: Config): Mistake[] {
  return [
    ...mistakesOfPools(config),
    ...mistakesOfAliases(config),
    ...SIZES.flatMap((size) => mistakesOfSize(size, config)),
    ...mistakesOfRules(config.rules),
  ];
}

/** A job could ask for another job's disk, which its template would read. */
function mistakesOfPools({ templatePool, overlayPool }: Config): Mistake[] {
  if (templatePool !== overlayPool) return [];
  const words = `"overlay_pool" must be another pool than "template_pool"`;
  return [{ path: ["overlay_pool"], words }];
}

/** Whoever asks for a name must get one template. */
function mistakesOfAliases({ templates }: Config): Mistake[] {
  const owners = new Map([...templates.keys()].map((name) => [name, name]));
  const mistakes: Mistake[] = [];
  for (const [template, { aliases }] of templates) {
    for (const [i, alias] of aliases.entries()) {
      const owner = owners.get(alias);
      owners.set(alias, owner ?? template);
      if (owner === undefined) continue;
      const path = ["templates", template, "aliases", i];
      const words = `"${path.join(".")}" must be a new name: "${alias}" is the template "${owner}"`;
      mistakes.push({ path, words });
    }
  }
  return mistakes;
}

const SIZES = [
  { key: "vcpus", field: "vcpus", max: "maxVcpus" },
  { key: "memory_mib", field: "memoryMib", max: "maxMemoryMib" },
  { key: "disk_gib", field: "diskGib", max: "maxDiskGib" },
  { key: "keep_minutes", field: "keepMinutes", max: "maxKeepMinutes" },
] as const;

/** A machine that is larger than it may be: no job that asks for nothing would get one. */
function mistakesOfSize(
  { key, field, max }: typeof SIZES[number],
  { machine, templates, rules }: Config,
): Mistake[] {
  const mistakes: Mistake[] = [];
  const add = (path: readonly string[], words: string): void => {
    mistakes.push({ path, words: `"${path.join(".")}" must be ${words}` });
  };
  const usual = machine[field] ?? 0;
  const most = machine[max] ?? Infinity;
  if (usual > most) add([`max_${key}`], `at least "${key}", ${usual}, not ${most}`);
  for (const [name, { machine, ownKeys }] of templates) {
    const own = machine[field] ?? 0;
    const ownMost = ownKeys.has(`max_${key}`) ? machine[max] ?? Infinity : Infinity;
    const granted = rules.some((rule) => (rule[max] ?? 0) >= own);
    if (own > ownMost) {
      add(["templates", name, `max_${key}`], `at least "${key}", ${own}, not ${ownMost}`);
    } else if (own > most && ownKeys.has(key) && !granted) {
      add(["templates", name, key], `at most "max_${key}", ${most}, not ${own}`);
    }
  }
  return mistakes;
}

/** A rule that changes nothing, for any job. */
function mistakesOfRules(rules: readonly Rule[]): Mistake[] {
  const catchAll = rules.findIndex((rule) => rule.projects === null && rule.protected === null);
  return rules.flatMap((rule, i) => {
    const { name: _, projects: __, protected: ___, ...effects } = rule;
    const words = catchAll >= 0 && i > catchAll
      ? `"rules.${i}" is never reached: "rules.${catchAll}" has neither projects nor protected`
      : Object.values(effects).every((effect) => effect === null)
      ? `"rules.${i}" has no effect: it needs templates, a max_… or allow_nested`
      : null;
    return words === null ? [] : [{ path: ["rules", i], words }];
  });
}
