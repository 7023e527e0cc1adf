// SPDX-License-Identifier: GPL-2.0-or-later
import { Printer } from "./printer.ts";
import { orFailure } from "../errors.ts";
import type { Outputs } from "../guest/command_streams.ts";
import type { TerminalSize } from "../guest/ssh_connection.ts";
import type { Env } from "../job/job.ts";

export interface Terminal {
  readonly type: string;
  readonly size: () => TerminalSize;
  /** The typed bytes; they end when the iterator is closed. */
  readonly input: AsyncIterable<Uint8Array>;
  /** A raw terminal passes on each key as it is, also ^C. */
  readonly setRaw: (raw: boolean) => void;
  /** Calls the listener when the size changes, until disposed of. */
  readonly onResize: (listener: () => void) => Disposable;
}

/** The terminal that the program runs at; null if its input or output is another. */
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

/** Puts a yes-or-no question to the person at the terminal. */
export type Ask = (question: string) => Promise<boolean>;

/** Asks on `stdout`. Anything but yes is no, a cancel too; null without a terminal. */
export function askAtTerminal({ output: { stdout }, signal }: {
  readonly output: Pick<Outputs, "stdout">;
  readonly signal: AbortSignal;
}): Ask | null {
  if (!Deno.stdin.isTerminal()) return null;
  return async (question) => {
    await stdout(new TextEncoder().encode(`${question} [y/N] `));
    const buffer = new Uint8Array(64);
    const cancelled = Promise.withResolvers<null>();
    signal.addEventListener("abort", () => cancelled.resolve(null));
    const length = await Promise.race([Deno.stdin.read(buffer), cancelled.promise]);
    return /^\s*y(es)?\s*$/i.test(new TextDecoder().decode(buffer.subarray(0, length ?? 0)));
  };
}

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

/** Writes each part whole, so that a slow reader slows the guest. Throws SystemFailure. */
export function sinkTo(
  stream: { write(bytes: Uint8Array): Promise<number> },
  name: string,
): (bytes: Uint8Array) => Promise<void> {
  return async (bytes) => {
    for (let written = 0; written < bytes.length;) {
      written += await orFailure(stream.write(bytes.subarray(written)), {
        what: `Cannot write to ${name}`,
        advice:
          "Check that the program that reads it still runs, and that its file system has space",
      });
    }
  };
}
