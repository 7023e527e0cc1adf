// SPDX-License-Identifier: GPL-2.0-or-later
import type { Terminal } from "./stages/ssh.ts";

/** The terminal that the program was called at, or null if its input or its output is another. */
export function ownTerminal(type: string | undefined): Terminal | null {
  if (!Deno.stdin.isTerminal() || !Deno.stdout.isTerminal()) return null;
  return {
    type: type ?? "dumb",
    size: Deno.consoleSize,
    input: Deno.stdin.readable,
    setRaw: (raw) => Deno.stdin.setRaw(raw),
    onResize: (listener) => {
      Deno.addSignalListener("SIGWINCH", listener);
      return { [Symbol.dispose]: () => Deno.removeSignalListener("SIGWINCH", listener) };
    },
  };
}
