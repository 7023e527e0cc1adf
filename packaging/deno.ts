// SPDX-License-Identifier: GPL-2.0-or-later

/** The directory of main.ts. */
export const ROOT = new URL("..", import.meta.url).pathname;

/** Why there is no program or no package. */
export class Failed extends Error {}

/** Runs Deno with these variables alone. Its errors go where ours do. Throws {@linkcode Failed}. */
export async function deno(
  args: readonly string[],
  env: Record<string, string> = Deno.env.toObject(),
): Promise<void> {
  await run([Deno.execPath(), ...args], env);
}

/** As {@linkcode deno}, for any program. */
export async function run(
  [program = "", ...args]: readonly string[],
  env: Record<string, string> = Deno.env.toObject(),
): Promise<void> {
  const { success } = await new Deno.Command(program, {
    args,
    cwd: ROOT,
    env,
    clearEnv: true,
    stdin: "null",
    stdout: "null",
    stderr: "inherit",
  }).spawn().status;
  const name = program.slice(program.lastIndexOf("/") + 1);
  if (!success) throw new Failed(`${name} ${args[0]} failed, see above`);
}
