// SPDX-License-Identifier: GPL-2.0-or-later
// @ts-types="@types/ssh2"
import type { Algorithms } from "ssh2";

/**
 * Key exchanges whose cost no server chooses: with diffie-hellman-group-exchange it names the prime, of
 * any size (RFC 4419), and ssh2 computes with it while nothing else happens. OpenSSH has had these since
 * 5.7. What is not compressed cannot grow.
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
