// SPDX-License-Identifier: GPL-2.0-or-later

/** The names of all packages that the program is made of, and of those that they may have. */
export async function packageNames(): Promise<string[]> {
  const lock = JSON.parse(await Deno.readTextFile(new URL("../../deno.lock", import.meta.url)));
  const names = Object.keys(lock.npm).map((it) => /^(@?[^@]+)@/.exec(it)?.[1] ?? "");
  if (!names.includes("cpu-features")) {
    throw new Error(`ssh2's optional package is not in ${names}`);
  }
  return names;
}
