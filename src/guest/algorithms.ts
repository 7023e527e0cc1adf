// SPDX-License-Identifier: GPL-2.0-or-later
// @ts-types="@types/ssh2"
import type { Algorithms } from "ssh2";

/**
 * Key exchanges whose cost the server does not choose. With diffie-hellman-group-exchange it chooses a
 * prime of any size (RFC 4419), and ssh2 blocks the program while it computes with it. OpenSSH has had
 * these since 5.7. Without compression, data cannot expand.
 */
export const ALGORITHMS: Algorithms = {
  kex: [
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
  ],
  compress: ["none"],
};
