// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { command } from "../e2e/bed.ts";

const interruption = new AbortController();

/** Aborts when the measurement is interrupted; its machines must be removed all the same. */
export const interrupted: AbortSignal = interruption.signal;

/** Has SIGINT and SIGTERM abort {@linkcode interrupted} instead of ending this process at once. */
export function cancelOnSignals(): void {
  for (const name of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(name, () => interruption.abort(new Error(`Interrupted by ${name}`)));
  }
}

/** Runs a program to its end and gives what it prints. Throws if it fails or is interrupted. */
export async function done([program = "", ...args]: readonly string[]): Promise<string> {
  interrupted.throwIfAborted();
  const { code, stdout, stderr } = await new Deno.Command(program, {
    args,
    stdin: "null",
    signal: interrupted,
  }).output();
  interrupted.throwIfAborted();
  const decoder = new TextDecoder();
  assert.equal(code, 0, `${program} ${args.join(" ")}: ${decoder.decode(stderr)}`);
  return decoder.decode(stdout) + decoder.decode(stderr);
}

/** Removes something by this command, also after an interruption; says so if it cannot. */
export async function undo(words: readonly string[]): Promise<void> {
  const { status, stderr } = await command(words);
  if (status !== 0) console.error(`${words.join(" ")} failed: ${stderr}`);
}
