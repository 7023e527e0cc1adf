// SPDX-License-Identifier: GPL-2.0-or-later

/** So many random bytes that nobody can guess, in hexadecimal. */
export function randomHex(bytes: number): string {
  return crypto.getRandomValues(new Uint8Array(bytes)).toHex();
}
