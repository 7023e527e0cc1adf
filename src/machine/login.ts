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

/**
 * The SSH key and the host key of a machine. Both are new for each machine, unless `login: template`
 * takes the template's.
 *
 * The SSH key's private half is a file in the attempt's directory, or by hand in the user's own. The
 * domain's metadata name the file, run and ssh read it, and cleanup deletes it. A machine that is kept
 * after its job has the file moved to where the attempt's end does not delete it.
 *
 * The host key's private half is only in the guest, and in the seed or the credential that brings it
 * there; cleanup deletes those volumes. The metadata have its fingerprint, which every login checks. With
 * `login: template`, it is the fingerprint that prepare saw first. It ends with the domain.
 */
export interface MachineLogin {
  readonly key: SshKey;
  /** Null with `login: template`. */
  readonly hostKey: KeyPair | null;
}

/** The key to log in with: a new one, a new one that is not kept, or the one in a file. */
export type KeyChoice = "own" | "nobody" | { readonly keyFile: string };

/** Creates the keys of a new machine. Throws SystemFailure. */
export async function createLogin(
  machine: string,
  { keys: choice, settings }: { readonly keys: KeyChoice; readonly settings: MachineSettings },
  { directories: { home, keys } }: Host,
): Promise<MachineLogin> {
  const hostKey = settings.ssh.login === "template" ? null : await makeKeyPair();
  if (choice === "nobody") return { key: { ...await makeKeyPair(), file: "" }, hostKey };
  const ofTemplate = hostKey === null ? settings.ssh.key : undefined;
  const given = typeof choice === "object" ? choice.keyFile : ofTemplate;
  if (given !== undefined) return { key: await readKey(given, home), hostKey };
  const pair = await makeKeyPair();
  return { key: { ...pair, file: await writeKeyFile(keys, machine, pair.privateKey) }, hostKey };
}

/** How to log in to a machine. The domain's handle must outlive the login. */
export async function loginTo(
  domain: Domain,
  { address, port, user, hostKey }: MachineMetadata,
  { privateKey }: Pick<SshKey, "privateKey">,
): Promise<Login> {
  const channel = address === CHANNEL_ADDRESS ? await sshChannel(domain) : null;
  return { address, port: port ?? 22, user, privateKey, hostKey: hostKey || null, channel };
}

/** The contents of the volumes that bring the keys into the guest. */
export function volumeContents(
  machine: string,
  { key, hostKey }: MachineLogin,
  { ssh: { login, user }, guest: { shell }, firmware }: MachineSettings,
): VolumeContents {
  const { publicKey } = key;
  const withoutKeys = { seed: null, credential: null, efi: firmware === "efi" };
  if (hostKey === null) return withoutKeys;
  if (login === "systemd") {
    return { ...withoutKeys, credential: tmpfilesCredential({ user, publicKey, hostKey }) };
  }
  const hostName = toHostName(machine);
  const guest = { machine: hostName, user, shell, publicKeys: [publicKey], hostKey };
  return { ...withoutKeys, seed: cloudInitSeed(guest) };
}

/** The guest's host name. cloud-init would cut the machine's name at its first dot. */
export function toHostName(machine: string): string {
  return machine.replace(/[._]/g, "-");
}

/**
 * The credential `tmpfiles.extra`, from which systemd (252 or newer) creates the host key and the user's
 * authorized_keys before the SSH server starts
 * (https://www.freedesktop.org/software/systemd/man/latest/tmpfiles.d.html). The template must have the
 * user. `f+` replaces the template's file, `~` is base64.
 */
export function tmpfilesCredential({ user, publicKey, hostKey }: {
  readonly user: string;
  readonly publicKey: string;
  readonly hostKey: Pick<KeyPair, "privateKey" | "publicKey">;
}): Uint8Array<ArrayBuffer> {
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
