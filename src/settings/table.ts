// SPDX-License-Identifier: GPL-2.0-or-later
import {
  DIRECTORY,
  FLAG,
  HOST_ADDRESSES,
  isKeys,
  type Kind,
  listOf,
  NAME,
  NETWORKS,
  oneOf,
  PATTERNS,
  PORTS,
  SECONDS,
  TEMPLATE_NAME,
  text,
  whole,
} from "./kinds.ts";

/** A setting: all that the program and its documentation know of it. */
export interface Setting<T> extends Details {
  readonly kind: Kind<unknown>;
  /** The value where the file says nothing; null is what `unset` says. */
  readonly fallback: T;
  readonly doc: string;
}

interface Details {
  /** What holds where the file says nothing, if that is no fixed value. */
  readonly unset?: string;
  /** Whether it is one of the few that people change first. */
  readonly basic?: true;
  /** Whether a machine is as it is by this setting: one with another value serves no such job. */
  readonly fixed?: true;
}

/** Settings by their keys. */
export interface Members {
  readonly [key: string]: Setting<unknown>;
}

function setting<T>(
  kind: Kind<T>,
  fallback: NoInfer<T>,
  doc: string,
  details?: Details,
): Setting<T>;
function setting<T>(
  kind: Kind<T>,
  fallback: null,
  doc: string,
  details: Details & { readonly unset: string },
): Setting<T | null>;
function setting<T>(
  kind: Kind<T>,
  fallback: T | null,
  doc: string,
  details: Details = {},
): Setting<T | null> {
  return { kind, fallback, doc, ...details };
}

/** The settings of the host. */
export const HOST = {
  uri: setting(
    text(/^[a-z][\w.+-]*:\S+$/i, "a libvirt URI, such as qemu:///system"),
    "qemu:///system",
    "The hypervisor to connect to, as in `virsh --connect`.",
  ),
  call_seconds: setting(SECONDS, 60, "How long libvirt may take to answer one call."),
  metrics_file: setting(
    text(/^\/([^\p{C}]*\/)?[^\p{C}/]+\.prom$/u, "an absolute path that ends in .prom"),
    null,
    "The file for node_exporter's textfile collector.",
    { unset: "no metrics" },
  ),
  post_mortem_dir: setting(DIRECTORY, null, "Where post-mortems are kept.", {
    unset: "`/var/lib/libvirt-gci/post-mortem` for root, else `libvirt-gci/post-mortem` below " +
      "`$XDG_STATE_HOME` or `~/.local/state`",
  }),
  post_mortems: setting(
    whole(0, 10_000),
    20,
    "How many post-mortems are kept. 0 keeps none. Beyond that, the project with the most " +
      "post-mortems loses its oldest.",
  ),
  post_mortem_mib: setting(
    whole(1, 1_000_000),
    100,
    "How large all post-mortems together may be. One file has at most a quarter of that.",
  ),
  template_pool: setting(
    NAME,
    "base_imgs",
    "The storage pool with the templates. `make_base_image.sh` creates it; libvirt-gci never " +
      "writes to it.",
  ),
  overlay_pool: setting(
    NAME,
    "libvirt-gci",
    "The storage pool for machines' disks. The default pool is created on first use, in " +
      "`/var/lib/libvirt/images`; any other must exist.",
  ),
  default_template: setting(
    text(TEMPLATE_NAME, "the name of a template"),
    null,
    "The template of a job that names none, neither in `DISTRO` nor in `image:`.",
    { unset: "such a job fails", basic: true },
  ),
  allowed_templates: setting(
    PATTERNS,
    ["*"],
    "The templates that jobs may use besides the default and those under `templates`. `*` " +
      "stands for any characters; `[]` allows no other.",
    { basic: true },
  ),
  max_kept_machines: setting(
    whole(0, 10_000),
    4,
    "How many machines of failed jobs may be kept at once. The next ones are removed as usual.",
  ),
  max_machines: setting(whole(1, 10_000), null, "How many machines may run at once.", {
    unset: "no limit",
    basic: true,
  }),
  overcommit_memory: setting(
    FLAG,
    false,
    "Start machines even if their memory adds up to more than the host has.",
  ),
  reserve_memory_mib: setting(
    whole(0, 16_777_216),
    512,
    "Memory that stays free for the host and QEMU.",
  ),
  reserve_disk_gib: setting(
    whole(0, 65_536),
    1,
    "Space that stays free in the overlay pool, because disks grow while their machines run. 0 " +
      "turns the check off.",
  ),
  admission_seconds: setting(
    whole(0, 86_400),
    1800,
    "How long a job waits for room before prepare fails and GitLab Runner retries.",
  ),
};

const VCPUS = whole(1, 1024);
const MEMORY_MIB = whole(64, 16_777_216);
const DISK_GIB = whole(1, 65_536);
const KEEP_MINUTES = whole(0, 43_200); // 30 days
const RATE = whole(1, 1_000_000);

/** The most that a job may ask for. */
const LIMITS = {
  max_vcpus: setting(VCPUS, null, "The most virtual CPUs that a job may ask for.", {
    unset: "`vcpus`",
    basic: true,
  }),
  max_memory_mib: setting(MEMORY_MIB, null, "The most memory that a job may ask for.", {
    unset: "`memory_mib`",
    basic: true,
  }),
  max_disk_gib: setting(
    DISK_GIB,
    null,
    "The largest disk that a machine may have, its template's included.",
    { unset: "`disk_gib`", basic: true },
  ),
  max_keep_minutes: setting(
    KEEP_MINUTES,
    null,
    "The longest that a job may ask to keep its machine.",
    { unset: "`keep_minutes`" },
  ),
};

const NESTED = "Let jobs ask for nested virtualisation with `LIBVIRT_GCI_NESTED=true`.";

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
  network: setting(
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
      "not if `uri` is another host's, or in a container: an isolated machine needs them then.",
    { fixed: true },
  ),
  blocked_networks: setting(
    NETWORKS,
    ["169.254.0.0/16"],
    "Networks that an isolated machine cannot reach. The default has the metadata service of " +
      "clouds (169.254.169.254), which gives away the host's credentials. Add `10.0.0.0/8`, " +
      "`172.16.0.0/12` and `192.168.0.0/16` to close private networks: jobs then lose the " +
      "LAN's registry and mirrors, but not DHCP, DNS and `host_ports`.",
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
  ...LIMITS,
  allow_nested: setting(FLAG, false, NESTED),
  cpu_shares: setting(whole(2, 10_000), null, "Weight of the machine when CPUs are short.", {
    unset: "libvirt's, 1024",
    fixed: true,
  }),
  disk_mib_per_second: setting(
    RATE,
    null,
    "The most that the disk reads and writes per second, in MiB.",
    { unset: "no limit", fixed: true },
  ),
  disk_iops: setting(
    whole(1, 10_000_000),
    null,
    "The most operations of the disk per second.",
    { unset: "no limit", fixed: true },
  ),
  network_mib_per_second: setting(
    RATE,
    null,
    "The most that the card sends, and receives, per second on average, in MiB.",
    { unset: "no limit", fixed: true },
  ),
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
  cpu_mode: setting<string>(
    oneOf("host-passthrough", "host-model", "maximum"),
    null,
    "The CPU model that the guest sees.",
    { unset: "`host-passthrough` with KVM, else `maximum`", fixed: true },
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
    "How many machines of each template under `templates` wait ready for jobs. This needs " +
      "`libvirt-gci warm TEMPLATE`. They serve the jobs that get the sizes set here.",
  ),
  login: setting(
    oneOf("cloud-init", "systemd", "template"),
    "cloud-init",
    "How the SSH keys get into the guest. `cloud-init` gets keys that are made for this machine, " +
      "and creates the user and the host name. `systemd` (252 or newer) gets such keys for a " +
      "user that the template has. With `template`, the template has the user with the public " +
      "part of `key`, and the host key that the machine shows first is valid for the job.",
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
    "With `login: template`, the private key to log in with. It has no passphrase.",
    { unset: "`~/.ssh/id_ed25519`, else `~/.ssh/id_rsa`" },
  ),
  shell: setting(
    oneOf("bash", "sh"),
    "bash",
    "The shell that runs scripts, and that of the user whom cloud-init creates. GitLab Runner " +
      "quotes for bash: where sh is another shell, such as dash, jobs need its feature flag " +
      "`FF_POSIXLY_CORRECT_ESCAPES`.",
    { fixed: true }, // the machine's record has it
  ),
  builds_dir: setting(DIRECTORY, null, "The guest's directory for the project.", {
    unset: "`builds` in the user's home",
  }),
  cache_dir: setting(DIRECTORY, null, "The guest's directory for caches.", {
    unset: "`cache` in the user's home",
  }),
  address_seconds: setting(SECONDS, 180, "How long a machine may take to get an IP address."),
  ssh_seconds: setting(SECONDS, 120, "How long it may then take to accept SSH."),
};

/** The settings of one template. */
export const TEMPLATE = {
  volume: setting(NAME, null, "The template's volume in the pool of templates.", {
    unset: "the template's name, with or without `.qcow2`",
  }),
  aliases: setting(
    listOf(text(/^[^\p{C}]+$/u, "a name"), "a list of names"),
    [],
    "Other names by which jobs may ask for the template. No two templates may share one.",
  ),
  ...MACHINE,
};

/** The settings of one rule. What it does not set is as without it. */
export const RULE = {
  projects: setting(
    listOf(
      text(/^[^\p{C}]+$/u, "a name or a pattern, such as debian-*"),
      "a list with a project or a pattern in it",
      { min: 1 },
    ),
    null,
    "Full paths of the projects that the rule is for. `*` stands for any characters.",
    { unset: "all projects" },
  ),
  protected: setting(
    FLAG,
    null,
    "`true` is for jobs of protected branches and tags, `false` for all others.",
    { unset: "both" },
  ),
  templates: setting(
    PATTERNS,
    null,
    "The only templates that the job may use, of those that all jobs may.",
    { unset: "all of those" },
  ),
  ...LIMITS,
  allow_nested: setting(FLAG, null, NESTED, { unset: "as without the rule" }),
  max_machines: setting(
    whole(1, 10_000),
    null,
    "How many machines each project that the rule is for may have at once. All of a project's " +
      "machines count, also those of another rule or that are kept.",
    { unset: "no limit" },
  ),
};

/** What stands at the top of the file. */
export const FILE = {
  ...HOST,
  ...MACHINE,
  templates: setting(
    { words: "the names of templates, each with settings below it", accepts: isKeys },
    {},
    "Settings of single templates, by their names. A template needs no entry; what its entry " +
      "does not set is as for all machines.",
  ),
  rules: setting(
    { words: "a list of rules", accepts: (value): value is unknown[] => Array.isArray(value) },
    [],
    "What jobs of single projects may ask for. The first rule that fits a job counts, and no " +
      "other. `libvirt-gci explain` tells which one that is.",
  ),
};
