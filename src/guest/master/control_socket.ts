// SPDX-License-Identifier: GPL-2.0-or-later

/** What a UNIX socket's path may have: sun_path of unix(7), with its final NUL. */
const MOST_PATH_BYTES = 107;
const OTHERS = 0o077;

/**
 * Where the connection master of the attempt with this directory listens, by OpenSSH's name for it; null
 * if no socket can have that path.
 */
export function controlSocket(attemptDir: string): string | null {
  const path = `${attemptDir}/control.libvirt-gci`;
  return new TextEncoder().encode(path).length <= MOST_PATH_BYTES ? path : null;
}

/**
 * Whether there is such a socket, which this user made, in a directory that is this user's alone. With
 * `anyUser`, root takes those of other users for such too.
 */
export async function isControlSocket(
  path: string,
  { anyUser = false }: { readonly anyUser?: boolean } = {},
): Promise<boolean> {
  const user = Deno.uid();
  const isOwn = (uid: number | null): boolean => uid === user || anyUser && user === 0;
  try {
    const socket = await Deno.lstat(path);
    const directory = await Deno.lstat(path.slice(0, path.lastIndexOf("/")));
    return socket.isSocket === true && isOwn(socket.uid) && directory.isDirectory &&
      isOwn(directory.uid) && ((directory.mode ?? OTHERS) & OTHERS) === 0;
  } catch {
    return false;
  }
}
