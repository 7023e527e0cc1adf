// SPDX-License-Identifier: GPL-2.0-or-later

/** Reads and writes C strings and arrays. Each function says who frees the memory. */

const encoder = new TextEncoder();

/** A C string of this text, owned by the garbage collector. Throws TypeError on a NUL, at which C would cut it. */
export function cString(text: string): Uint8Array<ArrayBuffer> {
  if (text.includes("\0")) {
    throw new TypeError(`A string for C holds a NUL: ${JSON.stringify(text)}`);
  }
  return encoder.encode(text + "\0");
}

/** The text at a `const char *`, which stays the library's; null for NULL. */
export function borrowedString(pointer: Deno.PointerValue): string | null {
  return pointer === null ? null : Deno.UnsafePointerView.getCString(pointer);
}

/**
 * The bytes at a `char *` before its NUL, at most `mostBytes`. It may have any size and need not be
 * UTF-8.
 */
export function cBytes(pointer: Deno.PointerObject, mostBytes: number): Uint8Array<ArrayBuffer> {
  const view = new Deno.UnsafePointerView(pointer);
  let length = 0;
  while (length < mostBytes && view.getUint8(length) !== 0) length++;
  const bytes = new Uint8Array(length);
  view.copyInto(bytes);
  return bytes;
}

export function pointerAt(pointer: Deno.PointerObject, offset: number): Deno.PointerValue {
  return new Deno.UnsafePointerView(pointer).getPointer(offset);
}

/** A place for a C function to put a pointer: an out parameter. */
export class OutCell {
  readonly buffer: BigUint64Array<ArrayBuffer> = new BigUint64Array(1);

  get pointer(): Deno.PointerValue {
    return Deno.UnsafePointer.create(this.buffer[0] ?? 0n);
  }
}

/** These bytes, one after the other. */
export function concatenated(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
