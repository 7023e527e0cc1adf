// SPDX-License-Identifier: GPL-2.0-or-later
import type { RULE } from "./file_table.ts";
import { HOST } from "./host_table.ts";
import { isKeys } from "./kinds.ts";
import { MACHINE } from "./machine_table.ts";
import { type Group, type Members, type Setting, settingsIn } from "./setting.ts";

/** `max_machines` as TypeScript has it: `maxMachines`. */
type Camel<Key extends string> = Key extends `${infer Start}_${infer Rest}`
  ? `${Start}${Capitalize<Camel<Rest>>}`
  : Key;

export type Values<M extends Members> = {
  readonly [Key in keyof M & string as Camel<Key>]: M[Key] extends Setting<infer T> ? T
    : M[Key] extends Group<infer Below> ? Values<Below>
    : never;
};

/** The settings of all machines, or of those of one template. */
export type MachineSettings = Values<typeof MACHINE>;

export interface TemplateSettings {
  readonly volume: string | null;
  readonly aliases: readonly string[];
  readonly machine: MachineSettings;
  /** The keys that its entry itself sets, such as `limits.vcpus`; the rest is inherited. */
  readonly ownKeys: ReadonlySet<string>;
}

/** What a rule lets its jobs have. A value that it does not set (null) is as without the rule. */
export interface Rule extends Values<typeof RULE> {
  /** Its name in messages, such as `rule 1 (rules[0])`. */
  readonly name: string;
}

export interface Config extends Values<typeof HOST> {
  /** The file that they are from; null are the defaults. */
  readonly file: string | null;
  readonly machine: MachineSettings;
  readonly templates: ReadonlyMap<string, TemplateSettings>;
  /** The first rule that fits a job holds. */
  readonly rules: readonly Rule[];
}

export const DEFAULT_CONFIG: Config = {
  ...fallbacksOf(HOST),
  file: null,
  machine: fallbacksOf(MACHINE),
  templates: new Map(),
  rules: [],
};

/** The values of these settings where the file says nothing. */
export function fallbacksOf<M extends Members>(members: M): Values<M> {
  const values = Object.entries(members).map(([key, member]) => [
    camel(key),
    "members" in member ? fallbacksOf(member.members) : member.fallback,
  ]);
  return Object.fromEntries(values) as Values<M>;
}

/** The values that belong to these settings. */
export function valuesOf<M extends Members>(members: M, values: Values<M>): Values<M> {
  const all: Readonly<Record<string, unknown>> = values;
  return Object.fromEntries(
    Object.keys(members).map((key) => [camel(key), all[camel(key)]]),
  ) as Values<M>;
}

/** The values of the settings that are `fixed`, each with its key. */
export function fixedValues(settings: MachineSettings): [string, unknown][] {
  return settingsIn(MACHINE).filter(([, { fixed }]) => fixed).map(([key]) => {
    const value = key.split(".").reduce<unknown>(
      (values, step) => isKeys(values) ? values[camel(step)] : undefined,
      settings,
    );
    return [key, value];
  });
}

export function camel(key: string): string {
  return key.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
}
