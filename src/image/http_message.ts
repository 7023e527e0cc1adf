// SPDX-License-Identifier: GPL-2.0-or-later

/** The transfer ended before its time, and another try may help. */
export class Broken extends Error {}

/** Where the bytes of a message come from. */
export interface ByteSource {
  /** Reads into the buffer; null at the end. */
  read(buffer: Uint8Array<ArrayBuffer>): Promise<number | null>;
}

/** What an answer begins with. */
export interface Head {
  readonly status: number;
  readonly headers: Headers;
}

const MOST_HEAD_BYTES = 64 * 1024;
const MOST_LINE_BYTES = 4096;
const MOST_INTERIM = 20;
const BUFFER_BYTES = 16 * 1024;
const LINE_FEED = 10;
const TOO_LONG = `the head of the server's answer has more than ${MOST_HEAD_BYTES} bytes`;
const MALFORMED_CHUNK = "the server's answer has a malformed chunk";

/** The head of a request, with an empty line at its end. `target` is encoded, as in a URL. */
export function requestHead(
  method: string,
  target: string,
  headers: Headers,
): Uint8Array<ArrayBuffer> {
  const lines = [...headers].map(([name, value]) => `${name}: ${value}`);
  return new TextEncoder().encode([`${method} ${target} HTTP/1.1`, ...lines, "", ""].join("\r\n"));
}

/** Each byte as one character, as fields have them. TextDecoder takes "latin1" for another encoding. */
function latin1(bytes: Uint8Array<ArrayBuffer>): string {
  return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
}

/** Reads the answer to one request, after which the connection is of no more use: RFC 9112. */
export class MessageReader {
  readonly #source: ByteSource;
  /** What was read and not yet given. */
  #ahead: Uint8Array<ArrayBuffer> = new Uint8Array();
  #framing: Body["framing"] = "length";
  /** What is left of the body, or of its chunk. */
  #left = 0;

  constructor(source: ByteSource) {
    this.#source = source;
  }

  /** The head of the answer to a request with this method, after those that only say to wait. */
  async head(method: string): Promise<Head> {
    for (let interim = 0; interim < MOST_INTERIM; interim++) {
      const head = await this.#readHead();
      if (head.status >= 200) {
        ({ framing: this.#framing, left: this.#left } = bodyOf(method, head));
        return head;
      }
      if (head.status === 101) break;
    }
    throw new Error("the server does not answer by HTTP's rules");
  }

  /** How many bytes of the body are to come, before any was read; null if the server does not say. */
  get bytesLeft(): number | null {
    return this.#framing === "length" ? this.#left : null;
  }

  async #readHead(): Promise<Head> {
    let left = MOST_HEAD_BYTES;
    const line = async (): Promise<string> => {
      const text = await this.#line(left, TOO_LONG);
      left -= text.length + 1;
      return text;
    };
    const [, status] = /^HTTP\/1\.[01] ([1-5]\d\d)(?: .*)?$/.exec(await line()) ?? [];
    if (status === undefined) throw new Error("the server does not speak HTTP");
    const headers = new Headers();
    for (let text = await line(); text !== ""; text = await line()) {
      const [, name, value = ""] = /^([^\s:]+):[ \t]*(.*)$/.exec(text) ?? [];
      if (name === undefined) throw new Error("the server's answer has a malformed header");
      headers.append(name, value);
    }
    return { status: Number(status), headers };
  }

  /** The next line, without its end. Throws Error in these words if it is too long. */
  async #line(mostBytes: number, tooLong: string): Promise<string> {
    for (;;) {
      const end = this.#ahead.indexOf(LINE_FEED);
      if ((end < 0 ? this.#ahead.length : end) > mostBytes) throw new Error(tooLong);
      if (end >= 0) {
        const line = latin1(this.#ahead.subarray(0, end));
        this.#ahead = this.#ahead.subarray(end + 1);
        return line.replace(/\r$/, "");
      }
      await this.#readAhead();
    }
  }

  async #readAhead(): Promise<void> {
    const buffer = new Uint8Array(BUFFER_BYTES);
    const length = await this.#source.read(buffer);
    if (length === null) throw new Broken("the connection ended too soon");
    const joined = new Uint8Array(this.#ahead.length + length);
    joined.set(this.#ahead);
    joined.set(buffer.subarray(0, length), this.#ahead.length);
    this.#ahead = joined;
  }

  /** Reads bytes of the body into the buffer; null at its end. */
  async read(buffer: Uint8Array<ArrayBuffer>): Promise<number | null> {
    if (this.#framing === "chunked" && this.#left === 0) await this.#nextChunk();
    if (this.#left === 0) return null;
    const length = await this.#readSome(buffer.subarray(0, Math.min(buffer.length, this.#left)));
    if (length === null) {
      if (this.#framing !== "until end") throw new Broken("the connection ended too soon");
      this.#left = 0;
      return null;
    }
    this.#left -= length;
    if (this.#framing === "chunked" && this.#left === 0) await this.#endOfLine();
    return length;
  }

  async #readSome(buffer: Uint8Array<ArrayBuffer>): Promise<number | null> {
    if (this.#ahead.length === 0) return await this.#source.read(buffer);
    const part = this.#ahead.subarray(0, buffer.length);
    buffer.set(part);
    this.#ahead = this.#ahead.subarray(part.length);
    return part.length;
  }

  /** Reads a chunk's length, and after the last one the fields that may follow. */
  async #nextChunk(): Promise<void> {
    const [, digits] =
      /^([\da-f]{1,12})[ \t]*(?:;.*)?$/i.exec(await this.#line(MOST_LINE_BYTES, MALFORMED_CHUNK)) ??
        [];
    if (digits === undefined) throw new Error(MALFORMED_CHUNK);
    this.#left = Number.parseInt(digits, 16);
    if (this.#left > 0) return;
    this.#framing = "length";
    for (let left = MOST_HEAD_BYTES;;) {
      const line = await this.#line(left, TOO_LONG);
      if (line === "") return;
      left -= line.length + 1;
    }
  }

  async #endOfLine(): Promise<void> {
    if (await this.#line(1, MALFORMED_CHUNK) !== "") throw new Error(MALFORMED_CHUNK);
  }
}

interface Body {
  readonly framing: "length" | "chunked" | "until end";
  readonly left: number;
}

/** How long the body of an answer is: section 6.3. */
function bodyOf(method: string, { status, headers }: Head): Body {
  if (method === "HEAD" || status === 204 || status === 304) return { framing: "length", left: 0 };
  const coding = headers.get("transfer-encoding");
  if (coding?.toLowerCase() === "chunked") return { framing: "chunked", left: 0 };
  if (coding !== null) throw new Error(`the server sends in a way that is not supported`);
  const length = headers.get("content-length");
  if (length === null) return { framing: "until end", left: Infinity };
  if (!/^\d{1,15}$/.test(length)) throw new Error("the server's answer has a malformed length");
  return { framing: "length", left: Number(length) };
}
