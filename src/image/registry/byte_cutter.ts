// SPDX-License-Identifier: GPL-2.0-or-later

type Bytes = Uint8Array<ArrayBuffer>;

/** Cuts bytes that come in chunks into pieces of the lengths that are asked for. Whoever makes it closes it. */
export class ByteCutter {
  readonly #chunks: AsyncIterator<Bytes>;
  #ahead: Bytes | null = null;

  constructor(chunks: AsyncIterable<Bytes>) {
    this.#chunks = chunks[Symbol.asyncIterator]();
  }

  /** The next so many bytes, or fewer at the end. Each piece is to be read to its end before the next. */
  async *take(bytes: number): AsyncGenerator<Bytes> {
    for (let left = bytes; left > 0;) {
      const chunk = this.#ahead ?? (await this.#chunks.next()).value as Bytes | undefined;
      if (chunk === undefined) return;
      const part = chunk.subarray(0, left);
      this.#ahead = part.length < chunk.length ? chunk.subarray(part.length) : null;
      left -= part.length;
      yield part;
    }
  }

  /** The same in one piece. */
  async gather(bytes: number): Promise<Bytes> {
    const whole = new Uint8Array(bytes);
    let length = 0;
    for await (const part of this.take(bytes)) {
      whole.set(part, length);
      length += part.length;
    }
    return whole.subarray(0, length);
  }

  /** Passes over so many bytes, and says how many there were. */
  async skip(bytes: number): Promise<number> {
    let length = 0;
    for await (const part of this.take(bytes)) length += part.length;
    return length;
  }

  /** Ends what the chunks come from. */
  async close(): Promise<void> {
    await this.#chunks.return?.();
  }
}
