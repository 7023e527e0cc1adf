// SPDX-License-Identifier: GPL-2.0-or-later
import { within } from "../../src/wait.ts";

/** One call of the driver, as the runner makes it. */
export interface Launch {
  readonly argv: readonly string[];
  /** The whole environment. */
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  /** When it aborts, the process group gets SIGTERM, and SIGKILL after the grace time. */
  readonly stop: AbortSignal;
  readonly onOutput: (stream: Stream, chunk: Uint8Array) => void;
}

/** One of a process's two outputs. */
export type Stream = "stdout" | "stderr";

/** How a process ended: by a signal, or with a status. */
export interface Ending {
  readonly exitStatus: number | null;
  readonly signal: Deno.Signal | null;
}

const FOREVER_MS = 2 ** 31 - 1;
/** GitLab Runner's graceful_kill_timeout. */
const GRACE_MS = 600_000;

/**
 * Runs a process in a session and process group of its own, with an empty stdin,
 * until it has exited AND no process holds its outputs any longer.
 */
export async function runProcess(
  { argv: [program = "", ...args], env, cwd, stop, onOutput }: Launch,
): Promise<Ending> {
  const child = new Deno.Command(program, {
    args,
    env,
    clearEnv: true,
    cwd,
    detached: true,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const read = async (stream: Stream): Promise<void> => {
    for await (const chunk of child[stream]) onOutput(stream, chunk);
  };
  const reading = Promise.all([read("stdout"), read("stderr")]);
  const ended = reading.then(() => child.status);
  let status = await within(ended, FOREVER_MS, stop);
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    if (status !== null) break;
    killGroup(child.pid, signal);
    status = await within(ended, GRACE_MS);
  }
  const { code, signal } = status ?? await ended;
  return { exitStatus: signal === null ? code : null, signal };
}

/** Sends a signal to a process group; one that is gone already is no error. */
export function killGroup(pid: number, signal: Deno.Signal): void {
  try {
    Deno.kill(-pid, signal);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
