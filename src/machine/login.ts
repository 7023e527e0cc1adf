// SPDX-License-Identifier: GPL-2.0-or-later
import { type KeyPair, makeKeyPair, readKey, type SshKey } from "../guest/key.ts";
import { writeKeyFile } from "../guest/key_file.ts";
import type { Login } from "../guest/ssh_connection.ts";
import type { Domain } from "../libvirt/domain.ts";
import type { Host } from "./context.ts";
import type { MachineMetadata } from "./metadata.ts";
import { CHANNEL_ADDRESS, sshChannel } from "./ssh_channel.ts";
import type { VolumeContents } from "./storage/disks.ts";
import { cloudInitSeed } from "./storage/seed.ts";
import type { MachineSettings } from "../settings/settings.ts";

/** Who is let in to a machine, and how it is known. */
export interface MachineLogin {
  readonly key: SshKey;
  /** The host key that we give to the guest; null where the template has its own. */
  readonly hostKey: KeyPair | null;
}

/**
 * With whose key somebody logs in to a machine: its own, one that nobody has once the machine is made, or
 * the one in this file, by the command line.
 */
export type KeyChoice = "own" | "nobody" | { readonly keyFile: string };

/**
 * The keys of a new machine. Its own is made for it alone and kept in a file until cleanup; with
 * `login: template` it is the template's. Throws SystemFailure.
 */
export async function createLogin(
  machine: string,
  { keys: choice, settings }: { readonly keys: KeyChoice; readonly settings: MachineSettings },
  { directories: { home, keys } }: Host,
): Promise<MachineLogin> {
  const keyFile = typeof choice === "object" ? choice.keyFile : undefined;
  const hostKey = settings.ssh.login === "template" ? null : await makeKeyPair();
  if (choice === "nobody") return { key: { ...await makeKeyPair(), file: "" }, hostKey };
  if (hostKey === null) return { key: await readKey(keyFile ?? settings.ssh.key, home), hostKey };
  if (keyFile !== undefined) return { key: await readKey(keyFile, home), hostKey };
  const pair = await makeKeyPair();
  const file = await writeKeyFile(keys, machine, pair.privateKey);
  return { key: { ...pair, file }, hostKey };
}

/** How to log in to a machine. The domain's handle has to live until that is done. */
export async function loginTo(
  domain: Domain,
  { address, port, user, hostKey }: MachineMetadata,
  { privateKey }: Pick<SshKey, "privateKey">,
): Promise<Login> {
  return {
    ...{ address, port: port ?? 22, user, privateKey, hostKey: hostKey || null },
    channel: address === CHANNEL_ADDRESS ? await sshChannel(domain) : null,
  };
}

/** What the machine's volumes hold, which bring the keys into the guest. */
export function volumeContents(
  machine: string,
  { key, hostKey }: MachineLogin,
  { ssh: { login, user }, guest: { shell }, firmware }: MachineSettings,
): VolumeContents {
  const withoutKeys = { seed: null, credential: null, efi: firmware === "efi" };
  if (hostKey === null) return withoutKeys;
  if (login === "systemd") {
    const credential = tmpfilesCredential({ user, publicKey: key.publicKey, hostKey });
    return { ...withoutKeys, credential };
  }
  const seed = cloudInitSeed({
    machine: toHostName(machine),
    ...{ user, shell },
    publicKeys: [key.publicKey],
    hostKey,
  });
  return { ...withoutKeys, seed };
}

/** What a machine calls itself. cloud-init would cut its name at the first dot. */
export function toHostName(machine: string): string {
  return machine.replace(/[._]/g, "-");
}

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
