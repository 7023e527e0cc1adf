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
const NESTED = "Let jobs ask for nested virtualisation.";

const SIZE_LIMITS = {
  vcpus: setting(VCPUS, null, "The most virtual CPUs that a job may ask for.", {
    unset: "`vcpus`",
    basic: true,
    example: 8,
    guess: "max_vcpus",
  }),
  memory_mib: setting(MEMORY_MIB, null, "The most memory that a job may ask for.", {
    unset: "`memory_mib`",
    basic: true,
    example: 16_384,
    guess: "max_memory_mib",
  }),
  disk_gib: setting(
    DISK_GIB,
    null,
    "The largest disk that a machine may have, its template's included.",
    { unset: "`disk_gib`", basic: true, example: 100, guess: "max_disk_gib" },
  ),
  keep_minutes: setting(
    KEEP_MINUTES,
    null,
    "The longest that a job may ask to keep its machine.",
    { unset: "`keep_minutes`", guess: "max_keep_minutes" },
  ),
};

const LIMITS_DOC = "What jobs may ask for by the variables `LIBVIRT_GCI_VCPUS`, " +
  "`LIBVIRT_GCI_MEMORY_MIB`, `LIBVIRT_GCI_DISK_GIB`, `LIBVIRT_GCI_KEEP_MINUTES` and " +
  "`LIBVIRT_GCI_NESTED`. If a template sets a limit too, the smaller one counts.";

/** What a rule sets in place of the limits of all jobs. */
export const RULE_LIMITS = group(LIMITS_DOC, {
  ...SIZE_LIMITS,
  nested: setting(FLAG, null, NESTED, { unset: "as without the rule", guess: "allow_nested" }),
});

/** The settings of all machines, and of those of one template. */
export const MACHINE = {
  domain_type: setting<string>(
    {
      ...oneOf("kvm", "qemu"),
      words: "kvm, or qemu for emulation, which is slow and no security boundary",
    },
    "kvm",
    "The hypervisor: `kvm`, or `qemu` for emulation. That is slow and, as " +
      "[QEMU's own guide](https://www.qemu.org/docs/master/system/security.html) says, no " +
      "security boundary: use it only for jobs that you trust.",
    { fixed: true },
  ),
  vcpus: setting(VCPUS, 2, "Number of virtual CPUs.", { basic: true, fixed: true }),
  memory_mib: setting(MEMORY_MIB, 2048, "Memory of the machine.", { basic: true, fixed: true }),
  disk_gib: setting(DISK_GIB, null, "Size of the disk, at least the template's.", {
    unset: "the template's size",
    fixed: true,
  }),
  nested: setting(
    FLAG,
    false,
    "Let the guest run virtual machines of its own, if the host's KVM can.",
    { fixed: true },
  ),
  keep_minutes: setting(
    KEEP_MINUTES,
    0,
    "How long the machine of a failed job is kept, with all secrets in it. It takes memory and " +
      "disk as long.",
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
    "How the machine boots: as the template was installed. EFI boots without Secure Boot, so " +
      "unsigned kernels work.",
    { fixed: true },
  ),
  start: setting(
    oneOf("cold", "warm", "auto"),
    "cold",
    "`cold` boots the machine. `warm` resumes it from the warm image that " +
      "`libvirt-gci warm TEMPLATE` saved, and boots with a warning if that is not possible. " +
      "`auto` does the same without a warning if there is no image.",
    { basic: true },
  ),
  standby: setting(
    whole(0, 100),
    0,
    "How many machines of each template under `templates` wait ready for jobs. They are resumed " +
      "from the template's warm image if there is one, and else boot. They serve the jobs that get " +
      "the sizes set here.",
  ),
  cpu: group("The machine's CPU.", {
    mode: setting<string>(
      oneOf("host-passthrough", "host-model", "maximum"),
      null,
      "The CPU model that the guest sees.",
      { unset: "`host-passthrough` with KVM, else `maximum`", fixed: true },
    ),
    shares: setting(whole(2, 10_000), null, "Weight of the machine when CPUs are short.", {
      unset: "libvirt's, 1024",
      fixed: true,
    }),
  }),
  disk: group("Limits that keep one job's disk from slowing down the others.", {
    mib_per_second: setting(
      RATE,
      null,
      "The most that the disk reads and writes per second, in MiB.",
      { unset: "no limit", fixed: true },
    ),
    iops: setting(whole(1, 10_000_000), null, "The most operations of the disk per second.", {
      unset: "no limit",
      fixed: true,
    }),
  }),
  network: group("The machine's network.", {
    name: setting(
      NAME,
      "default",
      "The libvirt network of the machine's card, where the guest asks for an address by DHCP. " +
        "`none` is a machine without a card: the job has no network at all.",
      { fixed: true },
    ),
    isolate: setting(
      FLAG,
      true,
      "Keep the machine from other machines, from the host except DHCP and DNS, and from sending " +
        "under a false address (MAC, IP, ARP). Turns IPv6 off.",
      { fixed: true },
    ),
    host_ports: setting(PORTS, [], "Ports of the host that an isolated machine may reach.", {
      fixed: true,
    }),
    host_addresses: setting(
      HOST_ADDRESSES,
      [],
      "The IPv4 addresses of the machines' host, with the prefixes of their networks, as " +
        "`ip -4 address` shows them there. libvirt-gci sees them if it runs on that host. It does " +
        "not if `libvirt.uri` is another host's, or in a container: an isolated machine needs " +
        "them then.",
      { fixed: true },
    ),
    blocked: setting(
      NETWORKS,
      ["169.254.0.0/16"],
      "Networks that an isolated machine cannot reach. The default has the metadata service of " +
        "clouds (169.254.169.254), which gives away the host's credentials. Add `10.0.0.0/8`, " +
        "`172.16.0.0/12` and `192.168.0.0/16` to close private networks: jobs then lose the " +
        "LAN's registry and mirrors, but not DHCP, DNS and `network.host_ports`.",
      { fixed: true, guess: "blocked_networks" },
    ),
    mib_per_second: setting(
      RATE,
      null,
      "The most that the card sends, and receives, per second on average, in MiB.",
      { unset: "no limit", fixed: true },
    ),
  }),
  ssh: group("How to log in to the guest. The SSH host key is checked on every connection.", {
    login: setting(
      oneOf("cloud-init", "systemd", "template"),
      "cloud-init",
      "How the SSH keys get into the guest. `cloud-init` gets keys that are made for this " +
        "machine, and creates the user and the host name. `systemd` (252 or newer) gets such keys " +
        "for a user that the template has. With `template`, the template has the user with the " +
        "public part of `ssh.key`, and the host key that the machine shows first is valid for " +
        "the job.",
      { basic: true, fixed: true },
    ),
    user: setting(
      text(/^[a-z_][a-z0-9_-]{0,31}$/, "a user name: lower case letters, digits, _ and -"),
      "gitlab-runner",
      "The guest's user who runs scripts.",
      { fixed: true },
    ),
    port: setting(whole(1, 65_535), 22, "The port of the guest's SSH server.", { fixed: true }),
    key: setting(
      text(/^(\/|~\/)[^\p{C}]+$/u, "a path that begins with / or ~/"),
      null,
      "With `ssh.login: template`, the private key to log in with. It has no passphrase.",
      { unset: "`~/.ssh/id_ed25519`, else `~/.ssh/id_rsa`" },
    ),
  }),
  guest: group("Scripts in the guest.", {
    shell: setting(
      oneOf("bash", "sh"),
      "bash",
      "The shell that runs scripts, and that of the user whom cloud-init creates. GitLab Runner " +
        "quotes for bash: if sh is another shell, such as dash, jobs need its feature flag " +
        "`FF_POSIXLY_CORRECT_ESCAPES`.",
      { fixed: true }, // the machine's metadata has it
    ),
    builds_dir: setting(DIRECTORY, null, "The guest's directory for the project.", {
      unset: "`builds` in the user's home",
    }),
    cache_dir: setting(DIRECTORY, null, "The guest's directory for caches.", {
      unset: "`cache` in the user's home",
    }),
  }),
  timeouts: group("How long to wait for a machine.", {
    address_seconds: setting(SECONDS, 180, "How long a machine may take to get an IP address."),
    ssh_seconds: setting(SECONDS, 120, "How long it may then take to accept SSH."),
  }),
};
