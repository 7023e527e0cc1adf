// SPDX-License-Identifier: GPL-2.0-or-later
import type { Env } from "./job.ts";
import { Printer } from "./printer.ts";
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

/** Prints on the program's own output, and its errors on that of errors. */
export function ownPrinter(env: Env): Printer {
  return new Printer({
    stdout: {
      isTerminal: () => Deno.stdout.isTerminal(),
      printLine: console.log,
      write: (text) => void Deno.stdout.writeSync(new TextEncoder().encode(text)),
      columns: () => Deno.consoleSize().columns,
    },
    stderr: { isTerminal: () => Deno.stderr.isTerminal(), printLine: console.error },
  }, env);
}
