// SPDX-License-Identifier: GPL-2.0-or-later

/** What a guest with systemd learns before its SSH server starts. */
export interface Credential {
  /** A user that the template has; root's home is /root, the others' are below /home. */
  readonly user: string;
  readonly publicKey: string;
  readonly hostKey: { readonly privateKey: string; readonly publicKey: string };
}

/**
 * The credential `tmpfiles.extra`, from which systemd (252 or newer) makes files early in the boot:
 * the host key, and the key of the user who logs in
 * (https://www.freedesktop.org/software/systemd/man/latest/tmpfiles.d.html). `f+` replaces what the
 * template has, `~` is base64.
 */
export function tmpfilesCredential(credential: Credential): Uint8Array<ArrayBuffer> {
  const { user, publicKey, hostKey } = credential;
  const home = user === "root" ? "/root" : `/home/${user}`;
  const host = "/etc/ssh/ssh_host_ed25519_key";
  const lines = [
    `f+~ ${host} 0600 root root - ${btoa(hostKey.privateKey)}`,
    `f+~ ${host}.pub 0644 root root - ${btoa(`${hostKey.publicKey}\n`)}`,
    `d ${home}/.ssh 0700 ${user} ${user} -`,
    `f+~ ${home}/.ssh/authorized_keys 0600 ${user} ${user} - ${btoa(`${publicKey}\n`)}`,
  ];
  return new TextEncoder().encode(lines.join("\n") + "\n");
}
