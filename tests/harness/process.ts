// SPDX-License-Identifier: GPL-2.0-or-later
import { quote, type Value } from "./quote.ts";

/** One call of the driver, as the runner makes it. */
export interface Launch {
  readonly argv: readonly string[];
  /** The whole environment. */
  readonly environment: ReadonlyMap<string, Value>;
  readonly cwd: string;
  /** When it aborts, the process group gets SIGTERM, and SIGKILL after the grace time. */
  readonly stop: AbortSignal;
  /** When it aborts, the runner is dead: it closes its pipes and waits for nothing. */
  readonly gone: AbortSignal;
  readonly gracefulKillSeconds: number;
  readonly forceKillSeconds: number;
  readonly onStart: (pid: number) => void;
  readonly onOutput: (stream: Stream, chunk: Uint8Array) => void;
}

/** One of a process's two outputs. */
export type Stream = "stdout" | "stderr";

/** How a process ended: with a status, by a signal, or with neither if the runner gave up. */
export interface Ending {
  readonly exitStatus: number | null;
  readonly signal: Deno.Signal | null;
  /** The signals sent to its process group, in order. */
  readonly sent: readonly Deno.Signal[];
  /** The process, if it outlived the runner. */
  readonly orphan: Orphan | null;
}

/** A process that outlived the runner. Whoever gets one ends it. */
export interface Orphan {
  readonly pid: number;
  /** Resolves when it has exited. */
  readonly ended: Promise<void>;
}

// Deno.Command takes no environment that is not UTF-8, hence bash and env. Both
// are replaced by the program, which keeps their process id. Every word comes as
// an argument of its own because the kernel limits a single one to 128 KiB.
const LAUNCHER = 'for word do eval "words+=($word)"; done; exec env -i -- "${words[@]}"';

/**
 * Runs a process in a session and process group of its own, with an empty stdin,
 * until it has exited AND nobody holds its outputs any longer.
 */
export async function runProcess(launch: Launch): Promise<Ending> {
  const child = spawn(launch);
  launch.onStart(child.pid);
  const pumps = [
    pump(child.stdout, (chunk) => launch.onOutput("stdout", chunk)),
    pump(child.stderr, (chunk) => launch.onOutput("stderr", chunk)),
  ];
  let status: Deno.CommandStatus | null = null;
  const ended = Promise.all([child.status, ...pumps.map(({ done }) => done)])
    .then(([result]) => void (status = result));
  const over = Promise.race([ended, aborted(launch.gone)]);

  await Promise.race([over, aborted(launch.stop)]);
  const sent: Deno.Signal[] = [];
  for (
    const [signal, seconds] of [
      ["SIGTERM", launch.gracefulKillSeconds],
      ["SIGKILL", launch.forceKillSeconds],
    ] as const
  ) {
    if (status || launch.gone.aborted) break;
    killGroup(child.pid, signal);
    sent.push(signal);
    await within(over, seconds);
  }

  if (status) return endingOf(status, sent);
  await Promise.all(pumps.map(({ cancel }) => cancel()));
  const orphan = { pid: child.pid, ended: child.status.then(() => {}) };
  return {
    exitStatus: null,
    signal: null,
    sent,
    orphan: launch.gone.aborted ? orphan : null,
  };
}

/** Sends a signal to a process group; one that is gone already is no error. */
export function killGroup(pid: number, signal: Deno.Signal): void {
  try {
    Deno.kill(-pid, signal);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Resolves when the signal aborts. */
export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

/** Waits for the promise, but no longer than this. */
export async function within(promise: Promise<unknown>, seconds: number): Promise<void> {
  const { promise: timeout, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, seconds * 1000);
  try {
    await Promise.race([promise, timeout]);
  } finally {
    clearTimeout(timer);
  }
}

function spawn({ argv, environment, cwd }: Launch): Deno.ChildProcess {
  const words = [...environment].map(([name, value]) => quote(name) + "=" + quote(value));
  return new Deno.Command("bash", {
    args: ["-c", LAUNCHER, "launcher", ...words, ...argv.map(quote)],
    clearEnv: true,
    env: { PATH: Deno.env.get("PATH") ?? "/usr/bin:/bin" },
    cwd,
    detached: true,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

function pump(
  stream: ReadableStream<Uint8Array>,
  onChunk: (chunk: Uint8Array) => void,
): { readonly done: Promise<void>; readonly cancel: () => Promise<void> } {
  const reader = stream.getReader();
  async function readAll(): Promise<void> {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onChunk(value);
    }
  }
  return { done: readAll(), cancel: () => reader.cancel() };
}

function endingOf(status: Deno.CommandStatus, sent: readonly Deno.Signal[]): Ending {
  const exitStatus = status.signal === null ? status.code : null;
  return { exitStatus, signal: status.signal, sent, orphan: null };
}
