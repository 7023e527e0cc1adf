// SPDX-License-Identifier: GPL-2.0-or-later
import type { Env } from "../job/job.ts";

const COLOURS = { red: 31, green: 32, yellow: 33 } as const; // of ECMA-48, SGR

/** Gives the text its colour, where colours are wanted. It has to be fit to print already. */
export type Paint = (colour: keyof typeof COLOURS, text: string) => string;

/** Leaves all text as it is. */
export const noPaint: Paint = (_, text) => text;

/**
 * The paint for a stream: none where it is no terminal, or one without colours, or where the user
 * wants none (https://no-color.org).
 */
export function paintFor(stream: { readonly isTerminal: () => boolean }, env: Env): Paint {
  if (!isSmart(stream, env) || env["NO_COLOR"]) return noPaint;
  return (colour, text) => `\x1b[${COLOURS[colour]}m${text}\x1b[0m`;
}

/** Whether the stream is a terminal that can do more than print. */
export function isSmart({ isTerminal }: { readonly isTerminal: () => boolean }, env: Env): boolean {
  const type = env["TERM"] ?? "dumb";
  return type !== "" && type !== "dumb" && isTerminal();
}
