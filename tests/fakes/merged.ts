// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";

/** Some of an object's values, of groups in it too; a list or a map is one value. */
export type Differences<T> = T extends readonly unknown[] | ReadonlyMap<unknown, unknown> ? T
  : T extends object ? { readonly [Key in keyof T]?: Differences<T[Key]> }
  : T;

/** The object with these values in place of its own. Throws if it has no such value. */
export function merged<T extends object>(base: T, differences: Differences<NoInfer<T>>): T {
  const own: Readonly<Record<string, unknown>> = { ...base } as Record<string, unknown>;
  const others = Object.entries(differences).map(([key, value]) => {
    assert(key in base, `"${key}" is none of ${Object.keys(base)}`);
    const before = own[key];
    return [key, isPlain(before) && isPlain(value) ? merged(before, value) : value];
  });
  return { ...base, ...Object.fromEntries(others) };
}

function isPlain(value: unknown): value is object {
  return typeof value === "object" && value !== null &&
    Object.getPrototypeOf(value) === Object.prototype;
}
