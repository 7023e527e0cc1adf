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
function mistakesOfPools({ pools: { templates, overlays } }: Config): Mistake[] {
  if (templates !== overlays) return [];
  const words = `"pools.overlays" must be another pool than "pools.templates"`;
  return [{ path: ["pools", "overlays"], words }];
}

/** A name must stand for one template. */
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
  { key: "vcpus", size: "vcpus" },
  { key: "memory_mib", size: "memoryMib" },
  { key: "disk_gib", size: "diskGib" },
  { key: "keep_minutes", size: "keepMinutes" },
] as const;

/** A machine that is larger than it may be: no job that asks for nothing would get one. */
function mistakesOfSize(
  { key, size }: typeof SIZES[number],
  { machine, templates, rules }: Config,
): Mistake[] {
  const mistakes: Mistake[] = [];
  const add = (path: readonly string[], words: string): void => {
    mistakes.push({ path, words: `"${path.join(".")}" must be ${words}` });
  };
  const usual = machine[size] ?? 0;
  const most = machine.limits[size] ?? Infinity;
  if (usual > most) add(["limits", key], `at least "${key}" (${usual}), not ${most}`);
  for (const [name, { machine, ownKeys }] of templates) {
    const own = machine[size] ?? 0;
    const ownMost = ownKeys.has(`limits.${key}`) ? machine.limits[size] ?? Infinity : Infinity;
    const granted = rules.some(({ limits }) => (limits[size] ?? 0) >= own);
    if (own > ownMost) {
      add(["templates", name, "limits", key], `at least "${key}" (${own}), not ${ownMost}`);
    } else if (own > most && ownKeys.has(key) && !granted) {
      add(["templates", name, key], `at most "limits.${key}" (${most}), not ${own}`);
    }
  }
  return mistakes;
}

/** A rule that changes nothing, for any job. */
function mistakesOfRules(rules: readonly Rule[]): Mistake[] {
  const catchAll = rules.findIndex((rule) => rule.projects === null && rule.protected === null);
  return rules.flatMap((rule, i) => {
    const { templates, maxMachines, limits } = rule;
    const effects = [templates, maxMachines, ...Object.values(limits)];
    const words = catchAll >= 0 && i > catchAll
      ? `"rules.${i}" is never reached: "rules.${catchAll}" has neither projects nor protected`
      : effects.every((effect) => effect === null)
      ? `"rules.${i}" has no effect: it needs templates, limits or max_machines`
      : null;
    return words === null ? [] : [{ path: ["rules", i], words }];
  });
}
