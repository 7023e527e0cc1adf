// SPDX-License-Identifier: GPL-2.0-or-later
import {
  DIRECTORY,
  FLAG,
  HOST_ADDRESSES,
  NAME,
  NETWORKS,
  oneOf,
  PORTS,
  SECONDS,
  text,
  whole,
} from "./kinds.ts";
import { group, setting } from "./setting.ts";

const VCPUS = whole(1, 1024);
const MEMORY_MIB = whole(64, 16_777_216);
const DISK_GIB = whole(1, 65_536);
const KEEP_MINUTES = whole(0, 43_200); // 30 days
const RATE = whole(1, 1_000_000);
const NESTED = "Allow jobs to ask for nested virtualisation.";

const SIZE_LIMITS = {
  vcpus: setting(VCPUS, null, "How many virtual CPUs a job may ask for.", {
    unset: "`vcpus`",
    basic: true,
    example: 8,
    guess: "max_vcpus",
  }),
  memory_mib: setting(MEMORY_MIB, null, "How much memory a job may ask for.", {
    unset: "`memory_mib`",
    basic: true,
    example: 16_384,
    guess: "max_memory_mib",
  }),
  disk_gib: setting(
    DISK_GIB,
    null,
    "How large a machine's disk may be, including that of its template.",
    { unset: "`disk_gib`", basic: true, example: 100, guess: "max_disk_gib" },
  ),
  keep_minutes: setting(
    KEEP_MINUTES,
    null,
    "How long a job may ask to keep its machine.",
    { unset: "`keep_minutes`", guess: "max_keep_minutes" },
  ),
};

const LIMITS_DOC = "What jobs may ask for in the variables `LIBVIRT_GCI_VCPUS`, " +
  "`LIBVIRT_GCI_MEMORY_MIB`, `LIBVIRT_GCI_DISK_GIB`, `LIBVIRT_GCI_KEEP_MINUTES` and " +
  "`LIBVIRT_GCI_NESTED`. If a template sets a limit too, the lower one applies.";

/** The limits that a rule sets in place of those of all jobs. */
export const RULE_LIMITS = group(LIMITS_DOC, {
  ...SIZE_LIMITS,
  nested: setting(FLAG, null, NESTED, { unset: "as without the rule", guess: "allow_nested" }),
});

/** The settings of all machines, and of those of one template. */
export const MACHINE = {
  domain_type: setting<string>(
    {
      ...oneOf("kvm", "qemu"),
      words: "kvm, or qemu for emulation, which is slow and not a security boundary",
    },
    "kvm",
    "The hypervisor: `kvm`, or `qemu` for emulation. Emulation is slow, and " +
      "[QEMU's own guide](https://www.qemu.org/docs/master/system/security.html) does not " +
      "consider it a security boundary. Use it only for jobs that you trust.",
    { fixed: true },
  ),
  vcpus: setting(VCPUS, 2, "How many virtual CPUs the machine has.", { basic: true, fixed: true }),
  memory_mib: setting(MEMORY_MIB, 2048, "How much memory the machine has.", {
    basic: true,
    fixed: true,
  }),
  disk_gib: setting(
    DISK_GIB,
    null,
    "How large the disk is. It must be at least as large as the template's.",
    {
      unset: "the template's size",
      fixed: true,
    },
  ),
  nested: setting(
    FLAG,
    false,
    "Allow the guest to run its own virtual machines, if the host's KVM supports it.",
    { fixed: true },
  ),
  keep_minutes: setting(
    KEEP_MINUTES,
    0,
    "How long the machine of a failed job is kept, with all secrets in it. Until then, it " +
      "uses memory and disk.",
  ),
  limits: group(LIMITS_DOC, {
    ...SIZE_LIMITS,
    nested: setting(FLAG, false, NESTED, { guess: "allow_nested" }),
  }),
  machine_type: setting(
    text(/^[\w.+-]+$/, "a machine type of QEMU, such as q35"),
    null,
    "QEMU's machine type.",
    { unset: "`q35` on x86-64, elsewhere libvirt's choice", fixed: true },
  ),
  firmware: setting(
    oneOf("bios", "efi"),
    "bios",
    "The firmware that the template was installed with. EFI boots without Secure Boot, so " +
      "unsigned kernels work.",
    { fixed: true },
  ),
  start: setting(
    oneOf("cold", "warm", "auto"),
    "cold",
    "How the machine starts. `cold` boots it. `warm` resumes it from the warm image that " +
      "`libvirt-gci warm TEMPLATE` saved, or boots with a warning if that is not possible. " +
      "`auto` does the same, without a warning if there is no image.",
    { basic: true },
  ),
  standby: setting(
    whole(0, 100),
    0,
    "How many standby machines of each template under `templates` are ready for jobs. They " +
      "resume from the template's warm image, or boot if there is none. They serve jobs with " +
      "the sizes set here.",
  ),
  cpu: group("The machine's CPU.", {
    mode: setting<string>(
      oneOf("host-passthrough", "host-model", "maximum"),
      null,
      "The CPU model that the guest sees.",
      { unset: "`host-passthrough` with KVM, else `maximum`", fixed: true },
    ),
    shares: setting(
      whole(2, 10_000),
      null,
      "How much weight the machine has when CPU time is short.",
      {
        unset: "libvirt's default, 1024",
        fixed: true,
      },
    ),
  }),
  disk: group("Limits that stop one job's disk from slowing down the others.", {
    mib_per_second: setting(
      RATE,
      null,
      "How many MiB the disk may read and write per second.",
      { unset: "no limit", fixed: true },
    ),
    iops: setting(whole(1, 10_000_000), null, "How many operations the disk may run per second.", {
      unset: "no limit",
      fixed: true,
    }),
  }),
  network: group("The machine's network.", {
    name: setting(
      NAME,
      "default",
      "The libvirt network of the machine's card, where the guest asks for an address by DHCP. " +
        "With `none`, the machine has no card, so the job has no network at all.",
      { fixed: true },
    ),
    isolate: setting(
      FLAG,
      true,
      "Isolate the machine from other machines and from the host, except for DHCP and DNS. It " +
        "cannot use false addresses (MAC, IP, ARP) or IPv6.",
      { fixed: true },
    ),
    host_ports: setting(PORTS, [], "The ports of the host that an isolated machine may reach.", {
      fixed: true,
    }),
    host_addresses: setting(
      HOST_ADDRESSES,
      [],
      "The IPv4 addresses of the machines' host, with the prefixes of their networks, as " +
        "`ip -4 address` shows them there. libvirt-gci finds them if it runs on that host. Set " +
        "them for isolated machines if `libvirt.uri` is on another host, or if libvirt-gci runs " +
        "in a container.",
      { fixed: true },
    ),
    blocked: setting(
      NETWORKS,
      ["169.254.0.0/16"],
      "The networks that an isolated machine cannot reach. The default includes the metadata " +
        "service of clouds (169.254.169.254), which gives away the host's credentials. Add " +
        "`10.0.0.0/8`, `172.16.0.0/12` and `192.168.0.0/16` to block private networks. Jobs then " +
        "lose the LAN's registry and mirrors, but not DHCP, DNS and `network.host_ports`.",
      { fixed: true, guess: "blocked_networks" },
    ),
    mib_per_second: setting(
      RATE,
      null,
      "How many MiB the card may send, and receive, per second on average.",
      { unset: "no limit", fixed: true },
    ),
  }),
  ssh: group("How to log in to the guest. The SSH host key is checked on every connection.", {
    login: setting(
      oneOf("cloud-init", "systemd", "template"),
      "cloud-init",
      "How the SSH keys get into the guest. `cloud-init` installs keys that are created for " +
        "this machine, and sets up the user and the host name. `systemd` (252 or newer) installs " +
        "such keys for a user of the template. With `template`, the user of the template already " +
        "has the public part of `ssh.key`, and the first host key that the machine shows is " +
        "valid for the job.",
      { basic: true, fixed: true },
    ),
    user: setting(
      text(/^[a-z_][a-z0-9_-]{0,31}$/, "a user name: lower case letters, digits, _ and -"),
      "gitlab-runner",
      "The user in the guest that runs scripts.",
      { fixed: true },
    ),
    port: setting(whole(1, 65_535), 22, "The port of the guest's SSH server.", { fixed: true }),
    key: setting(
      text(/^(\/|~\/)[^\p{C}]+$/u, "a path that begins with / or ~/"),
      null,
      "The private key to log in with, for `ssh.login: template`. It must have no passphrase.",
      { unset: "`~/.ssh/id_ed25519`, else `~/.ssh/id_rsa`" },
    ),
  }),
  guest: group("Scripts in the guest.", {
    shell: setting(
      oneOf("bash", "sh"),
      "bash",
      "The shell that runs scripts, and the login shell of a user created by cloud-init. GitLab " +
        "Runner quotes for bash. If sh is another shell, such as dash, jobs need its feature flag " +
        "`FF_POSIXLY_CORRECT_ESCAPES`.",
      { fixed: true }, // the machine's metadata has it
    ),
    builds_dir: setting(DIRECTORY, null, "The directory of projects in the guest.", {
      unset: "`builds` in the user's home",
    }),
    cache_dir: setting(DIRECTORY, null, "The directory of caches in the guest.", {
      unset: "`cache` in the user's home",
    }),
  }),
  timeouts: group("How long to wait for a machine.", {
    address_seconds: setting(
      SECONDS,
      180,
      "How many seconds a machine may take to get an IP address.",
    ),
    ssh_seconds: setting(SECONDS, 120, "How many seconds it may then take to accept SSH."),
  }),
};
