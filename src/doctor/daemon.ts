// SPDX-License-Identifier: GPL-2.0-or-later
import {
  allMachines,
  type DoctorContext,
  isConnected,
  isLocal,
  type LibvirtContext,
  needsLibvirt,
} from "./check.ts";
import { type Finding, type Found, ok, problem, warning } from "./finding.ts";
import {
  findGroupName,
  hasProgram,
  install,
  permissionsOf,
  readOwnUser,
  type Root,
  statHostFile,
} from "./host_files.ts";
import { explain, reasonOf } from "../errors.ts";
import { childrenOf, find, rootOf } from "../read_xml.ts";
import type { Config } from "../settings/settings.ts";
import { command } from "../shell.ts";

export const group = { name: "libvirt", checks: [checkDaemon, needsLibvirt(checkEmulator)] };

/** One daemon for everything, or one for QEMU: either may be there. */
const SOCKETS = ["/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"];
const SPLIT_DAEMONS = ["virtqemud", "virtnetworkd", "virtstoraged", "virtnwfilterd", "virtlogd"];
/** The oldest libvirt for all machines, and for those with these settings. */
const OLDEST = 6_001_000;
const OLDEST_WITH_SYSTEMD_LOGIN = 6_005_000; // it gives files by fw_cfg
const OLDEST_WITH_EFI = 8_001_000; // it resets a machine's NVRAM

export async function checkDaemon(context: DoctorContext): Promise<Found> {
  if (!isConnected(context)) return await noConnection(context);
  const { name } = await readOwnUser(context);
  return [
    await checkVersion(context),
    ok(`The user ${name} can manage libvirt`),
    isLocal(context) ? null : warning("The hypervisor is on another host", {
      meaning: "Its KVM, firewall, security modules and directories are not checked: run " +
        "libvirt-gci doctor there. Only libvirt's filters isolate machines there, and these do " +
        "not block that host's own addresses: see SECURITY.md",
    }),
  ];
}

async function noConnection(context: DoctorContext): Promise<Finding> {
  const remedy = await connectRemedy(context);
  const { connection } = context;
  const reason = remedy === null ? explain(connection) : reasonOf(connection);
  return problem(`No connection to libvirt at "${context.config.libvirt.uri}"`, {
    meaning: `${reason}\nNo job can start. Pools, networks, filters and templates are not checked`,
    remedy,
  });
}

async function checkVersion({ connection, config }: LibvirtContext): Promise<Finding> {
  const version = await connection.libVersion();
  const oldest = oldestFor(config);
  if (version < oldest) {
    return problem(`libvirt ${versionWords(version)} is too old`, {
      meaning: `With these settings, libvirt-gci needs libvirt ${versionWords(oldest)} or newer`,
    });
  }
  const qemu = versionWords(await connection.hypervisorVersion());
  return ok(
    `Connected to libvirt ${versionWords(version)} with QEMU ${qemu} at "${config.libvirt.uri}"`,
  );
}

function oldestFor(config: Config): number {
  const machines = allMachines(config);
  if (machines.some(({ firmware }) => firmware === "efi")) return OLDEST_WITH_EFI;
  return machines.some(({ ssh }) => ssh.login === "systemd") ? OLDEST_WITH_SYSTEMD_LOGIN : OLDEST;
}

function versionWords(version: number): string {
  return [version / 1_000_000, version / 1000 % 1000, version % 1000].map(Math.floor).join(".");
}

export async function checkEmulator(context: LibvirtContext): Promise<Found> {
  return await emulatorFinding(await context.connection.capabilities(), context);
}

/** The finding about machines in libvirt's capabilities (https://libvirt.org/formatcaps.html). */
export async function emulatorFinding(capabilities: string, context: Root): Promise<Found> {
  const root = rootOf(capabilities);
  const arch = find(root, "host", "cpu", "arch")?.text ?? "?";
  const guests = childrenOf(root, "guest").map((guest) => find(guest, "arch")?.attributes["name"]);
  if (guests.includes(arch)) return ok(`libvirt has a QEMU for this host's architecture, ${arch}`);
  const packages = { debian: "qemu-system", fedora: "qemu-kvm", arch: "qemu-base" };
  return problem(`libvirt finds no QEMU for ${arch}`, {
    meaning: "No machine can start",
    remedy: await install(context, packages),
  });
}

/** The command that gives this user access, as far as the daemon's socket tells; else null. */
async function connectRemedy(context: DoctorContext): Promise<string | null> {
  if (!isLocal(context) || !/^qemu:.*\/system$/.test(context.config.libvirt.uri)) return null;
  for (const socket of SOCKETS) {
    const info = await statHostFile(context, socket);
    if (info === null) continue;
    const user = await readOwnUser(context);
    const group = await findGroupName(context, info.gid ?? -1);
    if ((permissionsOf(user, info) & 0o6) === 0o6 || group === null || group === "root") {
      return null;
    }
    return `${command("usermod", "--append", "--groups", group, user.name)} # then log in again`;
  }
  if (await hasProgram(context, "libvirtd")) return "systemctl enable --now libvirtd.socket";
  if (await hasProgram(context, "virtqemud")) {
    const sockets = SPLIT_DAEMONS.map((name) => `${name}.socket`);
    return command("systemctl", "enable", "--now", ...sockets);
  }
  return await install(context, {
    debian: "libvirt-daemon-system qemu-system libvirt-clients",
    fedora: "libvirt-daemon-kvm libvirt-client",
    arch: "libvirt qemu-base dnsmasq iptables-nft",
  });
}
