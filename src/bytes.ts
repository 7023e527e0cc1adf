// SPDX-License-Identifier: GPL-2.0-or-later

export const GIB = 1024 ** 3;

/** Bytes in GiB, with one decimal place for small numbers. */
export function gib(bytes: number): string {
  return (bytes / GIB).toFixed(bytes < 10 * GIB ? 1 : 0);
}
