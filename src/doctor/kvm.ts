// SPDX-License-Identifier: GPL-2.0-or-later
import { allMachines, type DoctorContext, isConnected, needsLocalHost } from "./check.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";
import {
  findGroupName,
  findSetting,
  findUser,
  type HostUser,
  permissionsOf,
  readHostFile,
  readOwnUser,
  statHostFile,
} from "./host_files.ts";
import { EMULATION } from "../machine/kvm/kvm_fault.ts";
import { command, restartDaemons } from "../shell.ts";

export const group = {
  name: "KVM",
  checks: [
    checkEmulation,
    needsLocalHost(checkKvm),
    needsLocalHost(checkKvmDevice),
    needsLocalHost(checkNested),
  ],
};

const NO_START = "Machines with domain_type: kvm do not start";

export function checkEmulation({ config }: DoctorContext): Finding | null {
  if (!allMachines(config).some(({ domainType }) => domainType === "qemu")) return null;
  return warning("Machines are emulated: domain_type is qemu", {
    meaning: `If KVM works here, set domain_type: kvm, since ${EMULATION}`,
  });
}

/** Whether KVM runs a guest here, if the settings use KVM. It runs one to find out. */
export async function checkKvm(context: DoctorContext): Promise<Finding | null> {
  if (!allMachines(context.config).some(({ domainType }) => domainType === "kvm")) return null;
  const answer = await context.kvm();
  if (answer.works) {
    return isConnected(context)
      ? offerFinding(await context.connection.capabilities())
      : ok("KVM works");
  }
  const device = await statHostFile(context, "/dev/kvm");
  if (answer.works === null && device !== null) {
    const { name } = await readOwnUser(context);
    return warning("Cannot tell whether KVM works", {
      meaning:
        `${answer.reason}. Run libvirt-gci doctor as root, or give this user access to /dev/kvm`,
      remedy: command("usermod", "--append", "--groups", "kvm", name),
    });
  }
  return problem("KVM does not work", {
    meaning: `${answer.reason}. With domain_type: kvm, machines hang or do not start. ` +
      `domain_type: qemu works without KVM, but ${EMULATION}`,
    remedy: device === null ? "modprobe kvm_intel || modprobe kvm_amd" : null,
  });
}

/** Whether libvirt offers the KVM that works: libvirt keeps what it once found out about QEMU. */
export function offerFinding(capabilities: string): Finding {
  if (/<domain type=["']kvm/.test(capabilities)) return ok("KVM works");
  return problem("KVM works, but libvirt does not offer it", {
    meaning: `${NO_START}. KVM was missing when libvirt probed QEMU, or QEMU's user cannot use it`,
    remedy: restartDaemons("libvirtd", "virtqemud"),
  });
}

export async function checkKvmDevice(context: DoctorContext): Promise<Finding | null> {
  const device = await statHostFile(context, "/dev/kvm");
  if (device === null) return null; // checkKvm() says so
  const user = await findQemuUser(context);
  if (user === null) return null;
  if ((permissionsOf(user, device) & 0o6) === 0o6) {
    return ok(`QEMU's user ${user.name} can open /dev/kvm`);
  }
  const group = await findGroupName(context, device.gid ?? -1);
  const canJoin = group !== null && group !== "root" && ((device.mode ?? 0) & 0o060) === 0o060;
  return warning(`QEMU's user ${user.name} cannot open /dev/kvm`, {
    meaning: "libvirt probes QEMU again each time a machine starts, which takes 13 s. " + NO_START,
    remedy: canJoin
      ? command("usermod", "--append", "--groups", group, user.name)
      : "chown root:kvm /dev/kvm && chmod 660 /dev/kvm",
  });
}

export async function checkNested(context: DoctorContext): Promise<Finding | null> {
  const { config } = context;
  const machines = allMachines(config);
  const isWanted = machines.some(({ nested }) => nested);
  const isAllowed = machines.some(({ limits: { nested: allowNested } }) => allowNested) ||
    config.rules.some(({ limits: { nested: allowNested } }) => allowNested === true);
  if (!isWanted && !isAllowed) return null;
  const finding = isWanted ? problem : warning;
  const meaning = 'The settings have "nested" or "limits.nested", but guests get no /dev/kvm';
  for (const module of ["kvm_intel", "kvm_amd"]) {
    const value = await readHostFile(context, `/sys/module/${module}/parameters/nested`);
    if (value === null) continue;
    if (/^[1Y]/.test(value)) return ok(`Nested virtualisation is on in ${module}`);
    return finding(`Nested virtualisation is off in ${module}`, {
      meaning,
      remedy: `echo "options ${module} nested=1" > /etc/modprobe.d/libvirt-gci.conf && ` +
        `modprobe -r ${module} && modprobe ${module} # while no machine runs`,
    });
  }
  return finding(
    "Nested virtualisation is not available: neither kvm_intel nor kvm_amd is loaded",
    { meaning },
  );
}

/** The user of qemu.conf, else the distribution's; null if unknown. */
async function findQemuUser(context: DoctorContext): Promise<HostUser | null> {
  const setting = await findSetting(context, "/etc/libvirt/qemu.conf", "user");
  const named = setting?.replace(/^\+/, "");
  if (named === "root" || named === "0") return { name: "root", uid: 0, gids: [0] };
  for (const name of named === undefined ? ["libvirt-qemu", "qemu"] : [named]) {
    const user = await findUser(context, name);
    if (user !== null) return user;
  }
  return null;
}
