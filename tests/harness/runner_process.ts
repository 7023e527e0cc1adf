// SPDX-License-Identifier: GPL-2.0-or-later
import type { Job } from "./payload.ts";
import { runJob, type Runner } from "./runner.ts";

/** A runner whose process is its own, with one job: a test can end it as a host does. */
export interface RunnerProcess extends AsyncDisposable {
  /** Resolves with the job's log so far once it has this. Rejects if the log ends without. */
  readonly printed: (text: RegExp) => Promise<string>;
  /**
   * Ends it and what it prints to: at once with SIGKILL; with SIGTERM after its `shutdownSeconds`, or
   * when its job has ended. Its stages may live on.
   */
  readonly end: (signal: "SIGTERM" | "SIGKILL") => Promise<void>;
}

/** Starts it. What it calls back is not called. */
export function startRunnerProcess(runner: Runner, job: Job): RunnerProcess {
  const program = new URL(import.meta.url).pathname;
  const process = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-all", program, JSON.stringify({ runner, job })],
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  let log = "";
  let look = (): void => {};
  const read = async (): Promise<void> => {
    for await (const part of process.stdout.pipeThrough(new TextDecoderStream())) {
      log += part;
      look();
    }
  };
  const ended = Promise.all([read(), process.status]);
  const end = async (signal: Deno.Signal): Promise<void> => {
    try {
      process.kill(signal);
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // it has ended
    }
    await ended;
  };
  return {
    printed: async (text) => {
      const { promise, resolve } = Promise.withResolvers<void>();
      look = () => text.test(log) && resolve();
      look();
      await Promise.race([promise, ended]);
      if (!text.test(log)) throw new Error(`The job ended without ${text}: ${log}`);
      return log;
    },
    end,
    [Symbol.asyncDispose]: () => end("SIGKILL"),
  };
}

if (import.meta.main) {
  const { runner, job }: { runner: Runner; job: Job } = JSON.parse(Deno.args[0] ?? "");
  const stop = new AbortController();
  Deno.addSignalListener("SIGTERM", () => {
    stop.abort();
    setTimeout(() => Deno.exit(), runner.shutdownSeconds * 1000); // whatever it leaves behind
  });
  const print = (chunk: Uint8Array): void => void Deno.stdout.writeSync(chunk);
  await runJob({ ...runner, onOutput: (_stage, _stream, chunk) => print(chunk) }, job, {
    runnerStop: stop.signal,
  });
  Deno.exit();
}
