// SPDX-License-Identifier: GPL-2.0-or-later

/** The directory of main.ts. */
export const ROOT = new URL("..", import.meta.url).pathname;

/** Why there is no program. */
export class Failed extends Error {}

/** Runs Deno, whose errors go where ours do. Throws {@linkcode Failed}. */
export async function deno(...args: readonly string[]): Promise<void> {
  const { success } = await new Deno.Command(Deno.execPath(), {
    args: [...args],
    cwd: ROOT,
    stdin: "null",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn().status;
  if (!success) throw new Failed(`deno ${args[0]} failed, see above`);
}
