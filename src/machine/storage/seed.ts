// SPDX-License-Identifier: GPL-2.0-or-later

import { stringify } from "yaml";

import { iso9660Image } from "./iso9660.ts";

interface Login {
  readonly user: string;
  /** The shell of scripts, which the guest certainly has. */
  readonly shell: "bash" | "sh";
  readonly publicKeys: readonly string[];
  readonly hostKey: { readonly privateKey: string; readonly publicKey: string };
}

/**
 * A CD-ROM image with the host name and the SSH login for the guest's cloud-init
 * (https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html). Without `network-config`, the
 * first network device uses DHCP (https://docs.cloud-init.io/en/latest/reference/network-config.html).
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
    // A new one, or cloud-init takes this for a reboot of the template and skips most of its work:
    // https://docs.cloud-init.io/en/latest/explanation/first_boot.html
    "instance-id": machine,
    "local-hostname": machine,
  };
}

/** https://docs.cloud-init.io/en/latest/reference/modules.html has each of these keys. */
function userData({ user, shell, publicKeys, hostKey }: Login): object {
  return {
    ...(user === "root" ? rootLogin(publicKeys) : userLogin(user, shell, publicKeys)),
    // The template may have well-known passwords. If its sshd accepts them, cloud-init restarts it,
    // some time after the user can log in.
    ssh_pwauth: false,
    // The template's own host keys are deleted.
    ssh_keys: { ed25519_private: hostKey.privateKey, ed25519_public: hostKey.publicKey },
    ssh_deletekeys: true,
    // The installer of Ubuntu Server writes true into the template.
    preserve_hostname: false,
    // Or sudo looks up the host name in DNS, and complains if it does not exist.
    manage_etc_hosts: "localhost",
    // They take minutes, and a job expects the template's packages.
    package_update: false,
    package_upgrade: false,
  };
}

function userLogin(user: string, shell: Login["shell"], publicKeys: Login["publicKeys"]): object {
  return {
    // Without "default", cloud-init does not create the distribution's user. A user of the template keeps
    // everything but password, sudo and keys.
    users: [{
      name: user,
      // Only keys are valid. Alpine's sshd needs PAM for that (openssh-server-pam in its cloud images).
      lock_passwd: true,
      // The default is useradd's, sh on Debian. sshd refuses users whose shell does not exist.
      shell: `/bin/${shell}`,
      sudo: "ALL=(ALL) NOPASSWD:ALL",
      ssh_authorized_keys: publicKeys,
    }],
  };
}

function rootLogin(publicKeys: Login["publicKeys"]): object {
  return {
    // cloud-init before 23.2 logs a warning: https://github.com/canonical/cloud-init/pull/2124
    users: [],
    // By default, cloud-init turns root's keys into a message to use another user.
    disable_root: false,
    // For root and the default user, which does not exist.
    ssh_authorized_keys: publicKeys,
  };
}

/** Text in double quotes: cloud-init reads YAML 1.1, where a plain `no` or `1_0` is not text. */
function toYaml(value: unknown): string {
  return stringify(value, {
    defaultKeyType: "PLAIN",
    defaultStringType: "QUOTE_DOUBLE",
    lineWidth: 0,
  });
}
