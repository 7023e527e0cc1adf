// SPDX-License-Identifier: GPL-2.0-or-later
import * as v from "valibot";
import { firstOf, lastOf, readCidr } from "../ipv4.ts";

/** What can be set for all machines, and for those of one template. */
export interface MachineSettings {
  /** The hypervisor: `kvm`, `qemu` (emulation), or `test` for libvirt's test driver. */
  readonly domainType: string;
  /** The libvirt network that the machine's card is in; `none` is a machine without a card. */
  readonly network: string;
  /** Whether the machine is kept from its neighbours, from the host, and from false addresses. */
  readonly isolate: boolean;
  /** What it may reach on the host besides DHCP and DNS, such as `tcp/80`. */
  readonly hostPorts: readonly string[];
  /** The host's addresses, as `192.0.2.7/24`, that cannot be seen from where libvirt-gci runs. */
  readonly hostAddresses: readonly string[];
  /** The networks that an isolated machine does not reach, such as `10.0.0.0/8`. */
  readonly blockedNetworks: readonly string[];
  readonly vcpus: number;
  readonly memoryMib: number;
  /** The size of the machine's disk; null is the template's own. */
  readonly diskGib: number | null;
  /** Whether the guest can run virtual machines of its own. */
  readonly nested: boolean;
  /** How long the machine stays after a job that failed; 0 is not at all. */
  readonly keepMinutes: number;
  /** The most that a job may ask for; null is what it gets without asking. */
  readonly maxVcpus: number | null;
  readonly maxMemoryMib: number | null;
  readonly maxDiskGib: number | null;
  readonly maxKeepMinutes: number | null;
  /** Whether a job may ask for nested virtualisation. */
  readonly allowNested: boolean;
  /** The weight against other domains where processors are short; null is libvirt's, 1024. */
  readonly cpuShares: number | null;
  /** Bounds of the machine's disk and card; null is none. */
  readonly diskMibPerSecond: number | null;
  readonly diskIops: number | null;
  readonly networkMibPerSecond: number | null;
  /** A machine type of QEMU; null is q35 on x86-64, and elsewhere libvirt's choice. */
  readonly machineType: string | null;
  readonly firmware: "bios" | "efi";
  /** A CPU mode of libvirt; null is host-passthrough with KVM, and maximum without. */
  readonly cpuMode: string | null;
  /** Whether the machine boots, or is resumed from the template's RAM where that is possible. */
  readonly start: "cold" | "warm" | "auto";
  /** How many machines of a template that the file names wait, resumed, until a job comes. */
  readonly standby: number;
  readonly user: string;
  readonly port: number;
  /** With `login: template`, the file of the private key; null is the first of the caller's own. */
  readonly key: string | null;
  readonly shell: "bash" | "sh";
  /** How the guest learns whom to let in, and its host key; `template` knows it already. */
  readonly login: "cloud-init" | "systemd" | "template";
  /** Directories in the guest; null is below the home of the user. */
  readonly buildsDir: string | null;
  readonly cacheDir: string | null;
  readonly addressSeconds: number;
  readonly sshSeconds: number;
}

/** The settings of a machine where the file says nothing. */
export const DEFAULT_MACHINE: MachineSettings = {
  domainType: "kvm",
  network: "default",
  isolate: true,
  hostPorts: [],
  hostAddresses: [],
  blockedNetworks: ["169.254.0.0/16"],
  vcpus: 2,
  memoryMib: 2048,
  diskGib: null,
  nested: false,
  keepMinutes: 0,
  maxVcpus: null,
  maxMemoryMib: null,
  maxDiskGib: null,
  maxKeepMinutes: null,
  allowNested: false,
  cpuShares: null,
  diskMibPerSecond: null,
  diskIops: null,
  networkMibPerSecond: null,
  machineType: null,
  firmware: "bios",
  cpuMode: null,
  start: "cold",
  standby: 0,
  login: "cloud-init",
  user: "gitlab-runner",
  port: 22,
  key: null,
  shell: "bash",
  buildsDir: null,
  cacheDir: null,
  addressSeconds: 180,
  sshSeconds: 120,
};

/** A whole number between these, or one of them. */
export const wholeNumber = (min: number, max: number) =>
  v.custom<number>(
    (value) => Number.isInteger(value) && Number(value) >= min && Number(value) <= max,
    `a whole number from ${min} to ${max}`,
  );

const oneOf = <const T extends readonly string[]>(values: T) =>
  v.picklist(values, `one of ${values.join(", ")}`);

/** A text that the pattern fits. */
export const text = (pattern: RegExp, allowed: string) =>
  v.pipe(v.string(allowed), v.regex(pattern, allowed));

/** The name of something of libvirt's. */
export const name = text(
  /^[^\s/\p{C}][^/\p{C}]*$/u,
  "a name without slashes or control characters",
);
/** The path of a directory. */
export const directory = text(/^\/[^\p{C}]*$/u, "an absolute path");
/** A wait, in seconds. */
export const seconds = wholeNumber(1, 86_400);
/** How many of something. */
export const count = wholeNumber(0, 10_000);
/** Each makes rules of a filter, and each rule takes time. */
const MOST_ADDRESSES = 64;
const hostAddress = v.custom<string>(
  (value) => isHostAddress(String(value)),
  "an IPv4 address of the host, alone or with its prefix, such as 192.0.2.7/24",
);
const blockedNetwork = v.custom<string>(
  (value) => isNetwork(String(value)),
  "an IPv4 network by its first address, such as 192.168.0.0/16",
);
const vcpus = wholeNumber(1, 1024);
const memoryMib = wholeNumber(64, 16_777_216);
const diskGib = wholeNumber(1, 65_536);
const keepMinutes = wholeNumber(0, 43_200); // 30 days
const rate = wholeNumber(1, 1_000_000);
const flag = v.boolean("true or false");

/** The keys of the file for a machine, with what each may be. */
export const machineEntries = {
  domain_type: v.optional(v.picklist(
    ["kvm", "qemu"],
    "kvm, or qemu for emulation, which is slow and no security boundary",
  )),
  network: v.optional(name),
  isolate: v.optional(flag),
  host_ports: v.optional(
    v.array(
      text(
        /^(tcp|udp)\/([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])$/,
        "tcp/PORT or udp/PORT",
      ),
      "a list of ports, such as [tcp/80]",
    ),
  ),
  host_addresses: v.optional(
    v.pipe(
      v.array(hostAddress, "a list of addresses, such as [192.0.2.7/24]"),
      v.maxLength(MOST_ADDRESSES, `a list of ${MOST_ADDRESSES} addresses at most`),
    ),
  ),
  blocked_networks: v.optional(
    v.pipe(
      v.array(blockedNetwork, "a list of networks, such as [10.0.0.0/8]"),
      v.maxLength(MOST_ADDRESSES, `a list of ${MOST_ADDRESSES} networks at most`),
    ),
  ),
  vcpus: v.optional(vcpus),
  memory_mib: v.optional(memoryMib),
  disk_gib: v.optional(diskGib),
  nested: v.optional(flag),
  keep_minutes: v.optional(keepMinutes),
  max_vcpus: v.optional(vcpus),
  max_memory_mib: v.optional(memoryMib),
  max_disk_gib: v.optional(diskGib),
  max_keep_minutes: v.optional(keepMinutes),
  allow_nested: v.optional(flag),
  cpu_shares: v.optional(wholeNumber(2, 10_000)),
  disk_mib_per_second: v.optional(rate),
  disk_iops: v.optional(wholeNumber(1, 10_000_000)),
  network_mib_per_second: v.optional(rate),
  machine_type: v.optional(text(/^[\w.+-]+$/, "a machine type of QEMU, such as q35")),
  firmware: v.optional(oneOf(["bios", "efi"])),
  cpu_mode: v.optional(oneOf(["host-passthrough", "host-model", "maximum"])),
  start: v.optional(oneOf(["cold", "warm", "auto"])),
  standby: v.optional(wholeNumber(0, 100)),
  login: v.optional(oneOf(["cloud-init", "systemd", "template"])),
  user: v.optional(
    text(/^[a-z_][a-z0-9_-]{0,31}$/, "a user name: lower case letters, digits, _ and -"),
  ),
  port: v.optional(wholeNumber(1, 65_535)),
  key: v.optional(text(/^(\/|~\/)[^\p{C}]+$/u, "a path that begins with / or ~/")),
  shell: v.optional(oneOf(["bash", "sh"])),
  builds_dir: v.optional(directory),
  cache_dir: v.optional(directory),
  address_seconds: v.optional(seconds),
  ssh_seconds: v.optional(seconds),
};

/** What the file says of a machine. */
type RawMachine = v.InferOutput<v.ObjectSchema<typeof machineEntries, undefined>>;

/** The settings of a machine: what the file says, and else these. */
export function toMachine(raw: RawMachine, otherwise: MachineSettings): MachineSettings {
  return {
    domainType: raw.domain_type ?? otherwise.domainType,
    network: raw.network ?? otherwise.network,
    isolate: raw.isolate ?? otherwise.isolate,
    hostPorts: raw.host_ports ?? otherwise.hostPorts,
    hostAddresses: raw.host_addresses ?? otherwise.hostAddresses,
    blockedNetworks: raw.blocked_networks ?? otherwise.blockedNetworks,
    vcpus: raw.vcpus ?? otherwise.vcpus,
    memoryMib: raw.memory_mib ?? otherwise.memoryMib,
    diskGib: raw.disk_gib ?? otherwise.diskGib,
    nested: raw.nested ?? otherwise.nested,
    keepMinutes: raw.keep_minutes ?? otherwise.keepMinutes,
    maxVcpus: raw.max_vcpus ?? otherwise.maxVcpus,
    maxMemoryMib: raw.max_memory_mib ?? otherwise.maxMemoryMib,
    maxDiskGib: raw.max_disk_gib ?? otherwise.maxDiskGib,
    maxKeepMinutes: raw.max_keep_minutes ?? otherwise.maxKeepMinutes,
    allowNested: raw.allow_nested ?? otherwise.allowNested,
    cpuShares: raw.cpu_shares ?? otherwise.cpuShares,
    diskMibPerSecond: raw.disk_mib_per_second ?? otherwise.diskMibPerSecond,
    diskIops: raw.disk_iops ?? otherwise.diskIops,
    networkMibPerSecond: raw.network_mib_per_second ?? otherwise.networkMibPerSecond,
    machineType: raw.machine_type ?? otherwise.machineType,
    firmware: raw.firmware ?? otherwise.firmware,
    cpuMode: raw.cpu_mode ?? otherwise.cpuMode,
    start: raw.start ?? otherwise.start,
    standby: raw.standby ?? otherwise.standby,
    login: raw.login ?? otherwise.login,
    user: raw.user ?? otherwise.user,
    port: raw.port ?? otherwise.port,
    key: raw.key ?? otherwise.key,
    shell: raw.shell ?? otherwise.shell,
    buildsDir: raw.builds_dir ?? otherwise.buildsDir,
    cacheDir: raw.cache_dir ?? otherwise.cacheDir,
    addressSeconds: raw.address_seconds ?? otherwise.addressSeconds,
    sshSeconds: raw.ssh_seconds ?? otherwise.sshSeconds,
  };
}

/** Whether it may be a host's: the first and the last address of a network are nobody's. */
function isHostAddress(text: string): boolean {
  const cidr = readCidr(text);
  if (cidr === null) return false;
  return cidr.prefix > 30 || ![firstOf(cidr), lastOf(cidr)].includes(cidr.address);
}

function isNetwork(text: string): boolean {
  const cidr = readCidr(text);
  return cidr !== null && text.includes("/") && firstOf(cidr) === cidr.address;
}
