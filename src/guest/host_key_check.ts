// SPDX-License-Identifier: GPL-2.0-or-later

/** Checks that the server has this host key, or notes which one it has. */
export class HostKeyCheck {
  /** The SHA-256 of the host key that the server showed, in base64; empty before that. */
  shown = "";
  isWrong = false;

  constructor(readonly wanted: string | null) {}

  /** Takes the hash in hexadecimal, as ssh2 gives it. */
  readonly verify = (hash: string): boolean => {
    this.shown = btoa(String.fromCharCode(...Uint8Array.fromHex(hash)));
    this.isWrong = this.wanted !== null && this.wanted !== this.shown;
    return !this.isWrong;
  };
}
