// SPDX-License-Identifier: GPL-2.0-or-later

/** Random bytes that cannot be guessed, in hexadecimal. */
export function randomHex(bytes: number): string {
  return crypto.getRandomValues(new Uint8Array(bytes)).toHex();
}
