// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { dirname } from "node:path";
import type { DoctorContext, LibvirtContext } from "../../src/doctor/check.ts";
import { type Finding, type Found, type Level, listFindings } from "../../src/doctor/finding.ts";
import { type CallName, Connection } from "../../src/libvirt/connection.ts";
import type { HostNetwork } from "../../src/machine/network/host_addresses.ts";
import { parseConfig } from "../../src/settings/read.ts";
import { type Config, DEFAULT_CONFIG, type MachineSettings } from "../../src/settings/settings.ts";
import { poolPath } from "../../src/shell.ts";
import { type Differences, merged } from "./merged.ts";
import { openTestHost } from "./test_host.ts";

/** A file of a made-up host: its text, and its mode if it is not 644. Null is a directory. */
export type HostFile = string | null | { readonly text: string | null; readonly mode: number };
/** The files of a made-up host, by path. Undefined takes away one of {@linkcode HEALTHY}. */
export type HostTree = Readonly<Record<string, HostFile | undefined>>;

const PROGRAM = { text: "#!/bin/sh\n", mode: 0o755 };

/** The files of a host on which jobs run well, as the caller of the tests. */
export const HEALTHY: HostTree = {
  "/dev/kvm": { text: "", mode: 0o666 },
  "/etc/group": "root:x:0:\nlibvirt:x:106:\nkvm:x:107:\n",
  "/etc/libvirt/qemu.conf": '#user = "libvirt-qemu"\n',
  "/etc/os-release": 'ID=debian\nNAME="Debian GNU/Linux"\n',
  "/etc/passwd": "root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055:64055::/:/bin/false\n",
  // As gitlab-runner writes it, when the command of the README registers it; but for concurrent.
  "/etc/gitlab-runner/config.toml": `concurrent = 4
check_interval = 0
shutdown_timeout = 0

[session_server]
  session_timeout = 1800

[[runners]]
  name = "my-vm-host"
  url = "https://gitlab.com"
  id = 1
  token = "glrt-secret"
  token_obtained_at = 2026-11-30T18:12:58Z
  token_expires_at = 0001-01-01T00:00:00Z
  executor = "custom"
  [runners.custom_build_dir]
  [runners.cache]
    MaxUploadedArchiveSize = 0
    [runners.cache.s3]
    [runners.cache.gcs]
    [runners.cache.azure]
  [runners.custom]
    config_exec = "/usr/local/bin/libvirt-gci"
    config_args = ["config"]
    prepare_exec = "/usr/local/bin/libvirt-gci"
    prepare_args = ["prepare"]
    run_exec = "/usr/local/bin/libvirt-gci"
    run_args = ["run", "--script"]
    cleanup_exec = "/usr/local/bin/libvirt-gci"
    cleanup_args = ["cleanup"]
`,
  "/proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
  "/proc/meminfo": "MemTotal:       16384000 kB\nMemFree:  1 kB\n",
  "/proc/self/mounts": "/dev/vda1 / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n" +
    "/dev/vdb /var/lib/libvirt xfs rw 0 0\n",
  "/proc/self/status": `Uid:\t${Deno.uid()}\t${Deno.uid()}\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t0 \n` +
    "CapEff:\t000001ffffffffff\n",
  "/proc/sys/net/bridge/bridge-nf-call-iptables": "1\n",
  "/sys/devices/system/cpu/smt/active": "0\n",
  "/sys/module/apparmor/parameters/enabled": "Y\n",
  "/sys/module/kvm_intel/parameters/nested": "Y\n",
  "/usr/local/bin/libvirt-gci": PROGRAM,
  "/usr/sbin/ebtables": PROGRAM,
  "/usr/sbin/iptables": PROGRAM,
  [poolPath("libvirt-gci")]: { text: null, mode: 0o711 },
};

/** The network of such a host, with the bridge of the test driver's. */
export const HOST_NETWORK: HostNetwork = {
  interfaces: [
    { name: "eth0", address: "192.0.2.7", cidr: "192.0.2.7/24", mac: "52:54:00:00:00:01" },
    { name: "virbr0", address: "127.99.0.1", cidr: "127.99.0.1/24", mac: "52:54:00:00:00:02" },
  ],
  devices: ["lo", "eth0", "virbr0"],
  routes: [],
  isInitial: true,
};

/** What is different on a host of a test. */
export interface HostDifferences extends Partial<Omit<DoctorContext, "config">> {
  readonly files?: HostTree;
  /** Changes libvirt's test driver first. */
  readonly libvirt?: (connection: Connection) => unknown;
  readonly config?: Differences<Config>;
  /** Settings as a file has them, instead of `config`. */
  readonly yaml?: string;
  readonly machine?: Differences<MachineSettings>;
}

/** For a host without libvirt. */
export const NO_LIBVIRT = new Error("nobody connected to libvirt in this test");

/** A host on which jobs run well, but for these differences. Its files go when it is disposed of. */
export async function doctorHost(
  { files, libvirt, config = {}, yaml, machine = {}, ...differences }: HostDifferences = {},
): Promise<LibvirtContext & AsyncDisposable> {
  const stack = new AsyncDisposableStack();
  const root = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  stack.defer(() => Deno.remove(root, { recursive: true }));
  for (const [path, file] of Object.entries({ ...HEALTHY, ...files })) {
    if (file !== undefined) await make(root + path, file);
  }
  const connection = differences.connection ?? stack.use(await openTestHost());
  if (connection instanceof Connection) {
    answerCalls(connection, ANSWERS);
    await libvirt?.(connection);
  }
  const settings = yaml === undefined ? merged(DEFAULT_CONFIG, config) : parseConfig(yaml, "x");
  return {
    config: merged(settings, { machine }),
    configError: null,
    kvm: () => Promise.resolve({ works: true }),
    hostNetwork: () => HOST_NETWORK,
    home: "/root",
    program: "/usr/local/bin/libvirt-gci",
    root,
    checkSeconds: 10,
    ...differences,
    connection: connection as Connection, // an error is for checks that take any host
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

/** What a check finds on a host of {@linkcode doctorHost}. */
export async function look(
  check: (context: LibvirtContext) => Found | Promise<Found>,
  differences: HostDifferences = {},
): Promise<Finding[]> {
  await using host = await doctorHost(differences);
  return listFindings(await check(host));
}

/** Results of calls: numbers, which some write to their last parameter, and texts. */
type Answers = Partial<Record<CallName, bigint | number | string>>;

/** What libvirt's test driver does not know, or has otherwise. */
const ANSWERS: Answers = {
  virConnectGetLibVersion: 9_000_000n,
  virConnectGetVersion: 7_002_022n,
  virStoragePoolGetAutostart: 1,
  virNetworkGetAutostart: 1,
};

/** Has libvirt answer these calls so. */
export function answerCalls(connection: Connection, answers: Answers): void {
  const { call, callForString } = connection;
  const answer = (...args: Parameters<typeof call>): Promise<unknown> => {
    const given = answers[args[0]];
    if (given === undefined) return call.apply(connection, args);
    const written: unknown = args.at(-1);
    if (!ArrayBuffer.isView(written)) return Promise.resolve(given);
    (written as unknown as unknown[])[0] = given;
    return Promise.resolve(0);
  };
  connection.call = answer as typeof call;
  const answerText = (...args: Parameters<typeof callForString>): Promise<string> => {
    const given = answers[args[0]];
    return given === undefined
      ? callForString.apply(connection, args)
      : Promise.resolve(String(given));
  };
  connection.callForString = answerText as typeof callForString;
}

async function make(path: string, file: HostFile): Promise<void> {
  const { text, mode } = file === null || typeof file === "string"
    ? { text: file, mode: file === null ? 0o755 : 0o644 }
    : file;
  await Deno.mkdir(dirname(path), { recursive: true });
  if (text === null) await Deno.mkdir(path, { recursive: true });
  else await Deno.writeTextFile(path, text);
  await Deno.chmod(path, mode); // whatever the umask is
}

/** The one finding of a check, which has to be of this level, and its subject like this. */
export function only(found: Found, level: Level, subject: RegExp): Finding {
  const findings = listFindings(found);
  assert.deepEqual(findings.map((finding) => finding.level), [level], JSON.stringify(findings));
  const [finding] = findings;
  assert(finding);
  assert.match(finding.subject, subject);
  return finding;
}

/** The findings that are not ok. */
export function notOk(found: Found): Finding[] {
  return listFindings(found).filter(({ level }) => level !== "ok");
}

/** Fails unless all is well. */
export function allOk(found: Found): void {
  assert.deepEqual(notOk(found), []);
}
