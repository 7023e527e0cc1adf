// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";

export interface SshKey {
  readonly file: string;
  /** The file's content: never print it. */
  readonly privateKey: string;
  readonly publicKey: string;
}

export interface KeyPair {
  /** In OpenSSH's format: never print it. */
  readonly privateKey: string;
  readonly publicKey: string;
  /** The SHA-256 of the public part in base64, by which a connection knows a host key. */
  readonly fingerprint: string;
}

export async function makeKeyPair(): Promise<KeyPair> {
  // @ts-types="@types/ssh2"
  const { utils } = (await import("ssh2")).default;
  for (;;) {
    const { private: privateKey } = utils.generateKeyPairSync("ed25519");
    const key = utils.parseKey(privateKey);
    if (key instanceof Error) continue; // one in some hundreds that ssh2 makes is malformed
    const blob = new Uint8Array(key.getPublicSSH());
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", blob));
    return {
      privateKey,
      publicKey: `${key.type} ${blob.toBase64()} libvirt-gci`,
      fingerprint: digest.toBase64(),
    };
  }
}

/** Reads this key or, for null, the first of ~/.ssh/id_ed25519 and id_rsa. Throws SystemFailure. */
export async function readKey(file: string | null, home: string | undefined): Promise<SshKey> {
  const directory = `${home ?? ""}/.ssh`;
  const files = file !== null
    ? [file.replace(/^~(?=\/)/, home ?? "")]
    : [`${directory}/id_ed25519`, `${directory}/id_rsa`];
  for (const candidate of files) {
    try {
      const privateKey = await Deno.readTextFile(candidate);
      const publicKey = await publicKeyOf(candidate, privateKey);
      // A later stage may run in another directory.
      return { file: await Deno.realPath(candidate), privateKey, publicKey };
    } catch (cause) {
      if (cause instanceof SystemFailure) throw cause;
      if (cause instanceof Deno.errors.NotFound && file === null) continue;
      throw new SystemFailure({
        fault: "settings",
        what: `Cannot read the SSH key "${candidate}"`,
        cause,
        advice:
          `Give this user read access to it, or set "ssh.key" or --ssh-key-file to another key`,
      });
    }
  }
  throw new SystemFailure({
    fault: "settings",
    what: `There is no SSH key to log in with: neither ${files.map((f) => `"${f}"`).join(" nor ")}`,
    advice: `Create one: ssh-keygen -t ed25519 -N "" -f ${
      files[0]
    }; or set "ssh.key" in the settings`,
  });
}

async function publicKeyOf(file: string, privateKey: string): Promise<string> {
  // @ts-types="@types/ssh2"
  const { utils } = (await import("ssh2")).default;
  const parsed = utils.parseKey(privateKey);
  const key = Array.isArray(parsed) ? parsed[0] : parsed;
  if (key === undefined || key instanceof Error) {
    // The parser's message may quote the file, so it is not passed on.
    const encrypted = /encrypted|passphrase/i.test(key?.message ?? "");
    throw new SystemFailure({
      fault: "settings",
      what: encrypted
        ? `The SSH key "${file}" has a passphrase, which libvirt-gci cannot enter`
        : `The file "${file}" is not a valid SSH private key`,
      advice: 'Create a key for the runner: ssh-keygen -t ed25519 -N "" -f FILE',
    });
  }
  return `${key.type} ${key.getPublicSSH().toString("base64")} libvirt-gci`;
}
