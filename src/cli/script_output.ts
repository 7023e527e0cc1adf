// SPDX-License-Identifier: GPL-2.0-or-later
import type { Outputs, Sink } from "../guest/command_streams.ts";
import type { Env } from "../job/job.ts";

const LINE_FEED = 0x0a;
const RESET = "\x1b[0m"; // of colours and of hidden text: ECMA-48, SGR 0

/** The output of a job's script. It knows how the output ends, since our own lines follow. */
export class ScriptOutput {
  readonly stdout: Sink;
  readonly stderr: Sink;
  readonly #plainStderr: Sink;
  #last: number | undefined;

  constructor({ stdout, stderr }: Outputs) {
    this.stdout = this.#watched(stdout);
    this.stderr = this.#watched(stderr);
    this.#plainStderr = stderr;
  }

  /** Ends the script's colours and its last line, so that our words begin on a line of their own. */
  async end(env: Env): Promise<void> {
    if (this.#last === undefined) return;
    const reset = env["SYSTEM_FAILURE_EXIT_CODE"] === undefined ? "" : RESET; // in GitLab's log
    const feed = this.#last === LINE_FEED ? "" : "\n";
    this.#last = undefined;
    await this.#plainStderr(new TextEncoder().encode(reset + feed));
  }

  #watched(sink: Sink): Sink {
    return (bytes) => {
      this.#last = bytes.at(-1) ?? this.#last;
      return sink(bytes);
    };
  }
}
