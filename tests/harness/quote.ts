// SPDX-License-Identifier: GPL-2.0-or-later

/** What a variable holds: text, or bytes that need not be UTF-8. */
export type Value = string | Uint8Array;

const ESCAPES: Readonly<Record<number, string>> = {
  0x07: "\\a",
  0x08: "\\b",
  0x09: "\\t",
  0x0a: "\\n",
  0x0b: "\\v",
  0x0c: "\\f",
  0x0d: "\\r",
  0x27: "\\'",
  0x5c: "\\\\",
};

/**
 * A word for bash that stands for exactly these bytes, itself ASCII without
 * newlines: as it is if no byte is special, else in ANSI-C quotes, the way
 * GitLab Runner quotes.
 */
export function quote(value: Value): string {
  const bytes = toBytes(value);
  if (bytes.length === 0) return "''";
  let word = "";
  for (const byte of bytes) word += quoteByte(byte);
  return /^[\w,./@-]+$/.test(word) ? word : `$'${word}'`;
}

/** The bytes of a value; text as UTF-8. */
export function toBytes(value: Value): Uint8Array {
  return typeof value === "string" ? new TextEncoder().encode(value) : value;
}

/** A value as text, with U+FFFD for bytes that are not UTF-8, as in Go's JSON. */
export function toText(value: Value): string {
  return typeof value === "string"
    ? value
    : new TextDecoder("utf-8", { ignoreBOM: true }).decode(value);
}

/** These chunks as one array. */
export function concat(chunks: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return bytes;
}

function quoteByte(byte: number): string {
  const escape = ESCAPES[byte];
  if (escape !== undefined) return escape;
  if (byte >= 0x20 && byte < 0x7f) return String.fromCharCode(byte);
  return `\\x${byte.toString(16).padStart(2, "0")}`;
}
