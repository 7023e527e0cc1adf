// SPDX-License-Identifier: GPL-2.0-or-later

/** What the connection master and who uses it say to each other: first `prepare`, then `run`. */
export const KIND = {
  /** From `run`: what it wants, as JSON. Then the script, and nothing more but a cancel. */
  hello: 1,
  script: 2,
  cancel: 3,
  /** From the master: what `run` needs to know, or why there is no connection, as JSON. */
  ready: 4,
  refused: 5,
  /** Then the script's output, and how it ended, as JSON. */
  stdout: 6,
  stderr: 7,
  end: 8,
  /** To the master: end, if this is your machine, as JSON. The same in every protocol. */
  quit: 9,
  /**
   * From `prepare` to a master that it has started: an attempt to log in, as JSON, of which the answer is
   * how it ended; then that the guest knows the key; and at last its task, as JSON, of which the answer is
   * that it is ready. It is so once before, when it has started.
   */
  login: 10,
  keyKnown: 11,
  task: 12,
} as const;

/** One of {@linkcode KIND}. */
export type Kind = typeof KIND[keyof typeof KIND];

/** The version of all that; another is another program's. */
export const PROTOCOL = 1;

/** How many bytes a frame may hold. */
export const MOST_BYTES = 64 * 1024;

/** Its kind, and the number of bytes that follow, big-endian. */
const HEAD_BYTES = 5;

/** A part of what is said. Its bytes are good until the next is read. */
export interface Frame {
  readonly kind: number;
  readonly bytes: Uint8Array;
}

/** Reads frames, and holds no more than one. */
export class FrameReader {
  readonly #source: Pick<Deno.Conn, "read">;
  readonly #buffer = new Uint8Array(HEAD_BYTES + MOST_BYTES);
  #start = 0;
  #end = 0;

  constructor(source: Pick<Deno.Conn, "read">) {
    this.#source = source;
  }

  /** The next frame, or null at the end. Throws if that is amid a frame, or the frame is too long. */
  async next(): Promise<Frame | null> {
    if (!await this.#fill(HEAD_BYTES)) {
      if (this.#start === this.#end) return null;
      throw new Error("the other side ended amid a frame");
    }
    const head = new DataView(this.#buffer.buffer, this.#start, HEAD_BYTES);
    const [kind, length] = [head.getUint8(0), head.getUint32(1)];
    if (length > MOST_BYTES) throw new Error("the other side sent a frame that is too long");
    if (!await this.#fill(HEAD_BYTES + length)) {
      throw new Error("the other side ended amid a frame");
    }
    const from = this.#start + HEAD_BYTES;
    this.#start = from + length;
    return { kind, bytes: this.#buffer.subarray(from, this.#start) };
  }

  /** Has so many bytes in the buffer; false if the source ends before. */
  async #fill(length: number): Promise<boolean> {
    if (this.#start + length > this.#buffer.length) {
      this.#buffer.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    while (this.#end - this.#start < length) {
      const read = await this.#source.read(this.#buffer.subarray(this.#end));
      if (read === null) return false;
      this.#end += read;
    }
    return true;
  }
}

/** Writes frames, one after another, each when there is room for it. */
export class FrameWriter {
  readonly #sink: Pick<Deno.Conn, "write">;
  #turn: Promise<void> = Promise.resolve();

  constructor(sink: Pick<Deno.Conn, "write">) {
    this.#sink = sink;
  }

  /** Sends the bytes in as many frames as they need. Resolves when all are written. */
  async send(kind: Kind, bytes: Uint8Array = new Uint8Array()): Promise<void> {
    let at = 0;
    do {
      await this.#sendOne(kind, bytes.subarray(at, at + MOST_BYTES));
      at += MOST_BYTES;
    } while (at < bytes.length);
  }

  /** Sends a value as JSON. Throws if it is too long for a frame. */
  async sendJson(kind: Kind, value: object): Promise<void> {
    const bytes = new TextEncoder().encode(JSON.stringify(value));
    if (bytes.length > MOST_BYTES) throw new Error("this is too long for a frame");
    await this.#sendOne(kind, bytes);
  }

  #sendOne(kind: Kind, bytes: Uint8Array): Promise<void> {
    const frame = new Uint8Array(HEAD_BYTES + bytes.length);
    frame[0] = kind;
    new DataView(frame.buffer).setUint32(1, bytes.length);
    frame.set(bytes, HEAD_BYTES);
    const sent = this.#turn.then(() => this.#write(frame));
    this.#turn = sent.catch(() => {}); // each sender hears of its own
    return sent;
  }

  async #write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) at += await this.#sink.write(bytes.subarray(at));
  }
}

/** The JSON of a frame, of which nothing is known. Throws SyntaxError. */
export function readJson({ bytes }: Frame): Readonly<Record<string, unknown>> {
  return { ...JSON.parse(new TextDecoder().decode(bytes)) };
}
