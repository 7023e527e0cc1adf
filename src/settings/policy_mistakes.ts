// SPDX-License-Identifier: GPL-2.0-or-later
import type { Document } from "yaml";
import { type Mistake, offsetOf } from "./mistakes.ts";

const SIZES = ["vcpus", "memory_mib", "disk_gib", "keep_minutes"] as const;

/** The sizes of a machine, how long it is kept, and the most of each, as far as one place of the file sets them. */
export interface RawSizes {
  readonly vcpus?: number | undefined;
  readonly memory_mib?: number | undefined;
  readonly disk_gib?: number | undefined;
  readonly keep_minutes?: number | undefined;
  readonly max_vcpus?: number | undefined;
  readonly max_memory_mib?: number | undefined;
  readonly max_disk_gib?: number | undefined;
  readonly max_keep_minutes?: number | undefined;
  readonly allow_nested?: boolean | undefined;
}

/** A rule as it stands in the file. */
export interface RawRule extends Omit<RawSizes, typeof SIZES[number]> {
  readonly projects?: readonly string[] | undefined;
  readonly protected?: boolean | undefined;
  readonly templates?: readonly string[] | undefined;
  readonly max_machines?: number | undefined;
}

/** What of the file says who may have what. */
export interface RawPolicy extends RawSizes {
  readonly templates?: Readonly<Record<string, RawSizes | null>> | undefined;
  readonly rules?: readonly RawRule[] | undefined;
}

/** A machine that is larger than it may be: no job that asks for nothing would get one. */
export function mistakesOfSizes(
  raw: RawPolicy,
  defaults: RawSizes,
  document: Document,
): Mistake[] {
  const mistakes: Mistake[] = [];
  const add = (path: readonly string[], words: string): void => {
    const offset = offsetOf(document, path, false);
    mistakes.push({ offset, words: `"${path.join(".")}" must be ${words}` });
  };
  for (const size of SIZES) {
    const max = `max_${size}` as const;
    const usual = raw[size] ?? defaults[size] ?? 0;
    const most = raw[max] ?? Infinity;
    if (usual > most) add([max], `at least "${size}", ${usual}, not ${most}`);
    for (const [name, template] of Object.entries(raw.templates ?? {})) {
      const own = template?.[size] ?? usual;
      const ownMost = template?.[max] ?? Infinity;
      const granted = raw.rules?.some((rule) => (rule[max] ?? 0) >= own);
      if (own > ownMost) {
        add(["templates", name, max], `at least "${size}", ${own}, not ${ownMost}`);
      } else if (own > most && template?.[size] !== undefined && !granted) {
        add(["templates", name, size], `at most "${max}", ${most}, not ${own}`);
      }
    }
  }
  return mistakes;
}

/** A rule that changes nothing, for any job. */
export function mistakesOfRules(rules: readonly RawRule[], document: Document): Mistake[] {
  const catchAll = rules.findIndex((rule) =>
    rule.projects === undefined && rule.protected === undefined
  );
  return rules.flatMap((rule, i) => {
    const { projects: _, protected: __, ...effects } = rule;
    const words = catchAll >= 0 && i > catchAll
      ? `"rules.${i}" is never reached: "rules.${catchAll}" has neither projects nor protected`
      : Object.keys(effects).length === 0
      ? `"rules.${i}" has no effect: it needs templates, a max_… or allow_nested`
      : null;
    return words === null ? [] : [{ offset: offsetOf(document, ["rules", i], false), words }];
  });
}
