// SPDX-License-Identifier: GPL-2.0-or-later

export const GIB = 1024 ** 3;

/** So many bytes in GiB, to one decimal place where there are few. */
export function gib(bytes: number): string {
  return (bytes / GIB).toFixed(bytes < 10 * GIB ? 1 : 0);
}
