// SPDX-License-Identifier: GPL-2.0-or-later
import { concatenated } from "../../ffi/memory.ts";
import type { Sink } from "./command_streams.ts";

/** Begins with a character that is rare in output. */
const START = "@libvirt-gci-";

/**
 * Passes a script's output on until the mark that ends it. The end of the stream says nothing, since
 * processes that a script leaves behind keep it open, and the exit status overtakes the last output.
 */
export class OutputEnd {
  readonly #mark: Uint8Array;
  readonly #sink: Sink;
  #held: Uint8Array = new Uint8Array();
  #seen = false;

  constructor(token: string, sink: Sink) {
    this.#mark = new TextEncoder().encode(START + token);
    this.#sink = sink;
  }

  /** The shell command that prints the mark, in two parts: a list of processes does not hold it. */
  static printf(token: string): string {
    return `printf %s%s ${START} ${token}`;
  }

  get seen(): boolean {
    return this.#seen;
  }

  /** Takes a part of the output; gives true once the mark has come. */
  readonly push = async (bytes: Uint8Array): Promise<boolean> => {
    const all = this.#held.length === 0 ? bytes : concatenated([this.#held, bytes]);
    const at = this.#findMark(all);
    const whole = at + this.#mark.length <= all.length;
    this.#seen = whole;
    this.#held = whole ? new Uint8Array() : all.slice(at);
    if (at > 0) await this.#sink(all.subarray(0, at));
    return whole;
  };

  /** The start of the mark, or of bytes at the end that may become one; else their length. */
  #findMark(bytes: Uint8Array): number {
    const first = this.#mark[0] ?? 0;
    for (let at = bytes.indexOf(first); at >= 0; at = bytes.indexOf(first, at + 1)) {
      const part = bytes.subarray(at, at + this.#mark.length);
      if (part.every((byte, i) => byte === this.#mark[i])) return at;
    }
    return bytes.length;
  }
}
