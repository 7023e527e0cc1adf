// SPDX-License-Identifier: GPL-2.0-or-later
import { libc } from "./libc.ts";
import { readProcLink } from "./proc.ts";

/** Tells which process is at the other end of a socket (SO_PEERCRED in unix(7)). */
export const loadPeers = libc("getsockopt");

// asm/socket.h of Linux.
const SOL_SOCKET = 1;
const SO_PEERCRED = 17;

/** Skips the standard streams. The program has some dozens of files open. */
const FIRST_DESCRIPTOR = 3;
const MOST_DESCRIPTORS = 256;

/**
 * Whether all processes at the other ends of our Unix sockets, such as libvirt's daemon, share this
 * process's PID namespace (pid_namespaces(7)), and so see the same files in /proc. False without any.
 */
export function isSeenByPeers(): boolean {
  const own = readProcLink("self/ns/pid");
  const peers = peerProcesses();
  return own !== null && peers.size > 0 &&
    [...peers].every((pid) => readProcLink(`${pid}/ns/pid`) === own);
}

/** The PIDs of the processes at the other ends; 0 for one that is invisible to this process. */
function peerProcesses(): Set<number> {
  const { getsockopt } = loadPeers();
  const peers = new Set<number>();
  for (let file = FIRST_DESCRIPTOR; file < MOST_DESCRIPTORS; file++) {
    const credentials = new Int32Array(3); // struct ucred: pid, uid, gid
    const length = new Uint32Array([credentials.byteLength]);
    const status = getsockopt(file, SOL_SOCKET, SO_PEERCRED, credentials, length);
    const [pid = 0, user] = credentials;
    if (status === 0 && user !== -1 && pid !== Deno.pid) peers.add(pid);
  }
  return peers;
}
