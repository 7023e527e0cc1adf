// SPDX-License-Identifier: GPL-2.0-or-later

/** The SHA-256 of a text in UTF-8, as 64 hexadecimal digits. */
export async function sha256(text: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return new Uint8Array(digest).toHex();
}

/** The first 16 digits of that: enough to tell apart texts that were not chosen to collide. */
export async function shortHash(text: string): Promise<string> {
  return (await sha256(text)).slice(0, 16);
}
