// SPDX-License-Identifier: GPL-2.0-or-later

import { stringify } from "yaml";

import { iso9660Image } from "./iso9660.ts";

interface Login {
  readonly user: string;
  /** The shell of scripts, which the guest has; another it may not have. */
  readonly shell: "bash" | "sh";
  readonly publicKeys: readonly string[];
  /** The machine's SSH host key: the private part, and the line for the .pub file. */
  readonly hostKey: { readonly privateKey: string; readonly publicKey: string };
}

/**
 * A CD-ROM image that tells the cloud-init of a guest its host name, which is
 * the machine's, and whom to let in by SSH:
 * https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html
 *
 * It has no `network-config`, without which the first network device asks for
 * an address by DHCP, however the distribution does that:
 * https://docs.cloud-init.io/en/latest/reference/network-config.html
 */
export function cloudInitSeed(seed: Login & { readonly machine: string }): Uint8Array<ArrayBuffer> {
  const files = new Map([
    ["meta-data", toYaml(metaData(seed.machine))],
    ["user-data", `#cloud-config\n${toYaml(userData(seed))}`],
  ]);
  const encoder = new TextEncoder();
  return iso9660Image(
    "cidata", // cloud-init looks for this label.
    new Map([...files].map(([name, text]) => [name, encoder.encode(text)])),
  );
}

function metaData(machine: string): object {
  return {
    // Not the one that the template may have booted with, or cloud-init would
    // take this for another boot of that machine and leave out most of its work.
    // https://docs.cloud-init.io/en/latest/explanation/first_boot.html
    "instance-id": machine,
    "local-hostname": machine,
  };
}

/** https://docs.cloud-init.io/en/latest/reference/modules.html has each of these keys. */
function userData({ user, shell, publicKeys, hostKey }: Login): object {
  return {
    ...(user === "root" ? rootLogin(publicKeys) : userLogin(user, shell, publicKeys)),
    // A template may have users with well-known passwords. If its sshd takes
    // them, cloud-init restarts it, some time after the user can log in.
    ssh_pwauth: false,
    // The host key by which we know the machine; the template's own are deleted.
    ssh_keys: { ed25519_private: hostKey.privateKey, ed25519_public: hostKey.publicKey },
    ssh_deletekeys: true,
    // The installer of Ubuntu Server writes true into the template.
    preserve_hostname: false,
    // Or sudo looks the host name up in DNS, and complains when it is not there.
    manage_etc_hosts: "localhost",
    // They cost minutes, and a job wants the packages of the template.
    package_update: false,
    package_upgrade: false,
  };
}

function userLogin(user: string, shell: Login["shell"], publicKeys: Login["publicKeys"]): object {
  return {
    // Without "default" in it, so the distribution's own user is not made. A
    // user that the template has is kept, but for the password, sudo and keys.
    users: [{
      name: user,
      // No password is valid, keys are. Alpine's sshd needs PAM for that
      // (openssh-server-pam), as its cloud images have it.
      lock_passwd: true,
      // By default it is that of useradd, on Debian sh. sshd lets nobody in whose shell is not there.
      shell: `/bin/${shell}`,
      sudo: "ALL=(ALL) NOPASSWD:ALL",
      ssh_authorized_keys: publicKeys,
    }],
  };
}

function rootLogin(publicKeys: Login["publicKeys"]): object {
  return {
    // No user but those of the template. cloud-init before 23.2 does it with a
    // warning in its log: https://github.com/canonical/cloud-init/pull/2124
    users: [],
    // By default cloud-init turns root's keys into a message to use another user.
    disable_root: false,
    // Keys of the default user, of whom there is none, and of root.
    ssh_authorized_keys: publicKeys,
  };
}

/**
 * Text values in double quotes, since cloud-init reads YAML 1.1, where a plain
 * `no` or `1_0` is not text.
 */
function toYaml(value: unknown): string {
  return stringify(value, {
    defaultKeyType: "PLAIN",
    defaultStringType: "QUOTE_DOUBLE",
    lineWidth: 0,
  });
}
