// SPDX-License-Identifier: GPL-2.0-or-later
import { type DoctorContext, isConnected, needsLocalHost } from "./check.ts";
import { type Finding, type Found, ok, warning } from "./finding.ts";
import { isInSys, readHostFile, readIfAllowed, readSetting } from "./host_files.ts";
import { command, restartDaemons } from "../shell.ts";

export const group = {
  name: "hardening",
  checks: [needsLocalHost(checkThreads), needsLocalHost(checkSwap)],
};

const SMT = "/sys/devices/system/cpu/smt";
const QEMU_CONF = "/etc/libvirt/qemu.conf";
const FIRST_WITH_CORE_SCHEDULING = 8_009_000;

/** Whether machines share processor cores: threads of a core can observe each other. */
export async function checkThreads(context: DoctorContext): Promise<Finding> {
  if ((await readHostFile(context, `${SMT}/active`))?.trim() !== "1") {
    return ok("Machines do not share CPU cores: SMT is off");
  }
  const meaning = "Through the caches of a core, a job can read secrets, such as keys, of the " +
    "machine on the core's other thread";
  let setting: string | null;
  try {
    setting = await readSetting(context, QEMU_CONF, "sched_core");
  } catch (error) {
    if (!(error instanceof Deno.errors.PermissionDenied)) throw error;
    return warning(`SMT is on, and this user cannot read ${QEMU_CONF}`, {
      meaning: `${meaning}, unless "sched_core" is set there. Run libvirt-gci doctor as root`,
    });
  }
  if (setting !== null && setting !== "none") {
    return ok(`Machines do not share CPU cores: sched_core is ${setting}`);
  }
  return warning("SMT is on, and machines share CPU cores", {
    meaning,
    remedy: await canScheduleCores(context)
      ? `sed -i '/^ *sched_core/d' ${QEMU_CONF} && ` +
        `echo 'sched_core = "full"' >> ${QEMU_CONF} && ${restartDaemons("libvirtd", "virtqemud")}`
      : `echo off > ${SMT}/control # until the next boot; to keep it off, boot with nosmt`,
  });
}

/**
 * Whether libvirt and the kernel certainly support `sched_core`: otherwise libvirt would not start.
 */
async function canScheduleCores(context: DoctorContext): Promise<boolean> {
  if (!isConnected(context)) return false;
  if (await context.connection.libVersion() < FIRST_WITH_CORE_SCHEDULING) return false;
  const release = await readHostFile(context, "/proc/sys/kernel/osrelease");
  const kernel = await readIfAllowed(context, `/boot/config-${release?.trim()}`);
  return /^CONFIG_SCHED_CORE=y$/m.test(kernel ?? "");
}

/** Whether the memory of machines reaches the host's disk unencrypted. */
export async function checkSwap(context: DoctorContext): Promise<Found> {
  const [, ...lines] = (await readHostFile(context, "/proc/swaps") ?? "").trim().split("\n");
  if (lines.length === 0) return ok("No swap is active");
  const findings = await Promise.all(lines.map((line) => checkOneSwap(line, context)));
  if (findings.some((finding) => finding !== null)) return findings;
  return ok("All swap is encrypted, or stays in memory");
}

async function checkOneSwap(line: string, context: DoctorContext): Promise<Finding | null> {
  const [escaped = "", type] = line.split(/\s+/);
  const path = escaped.replace(/\\(\d{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8)));
  if (type !== "file" && await keepsSecret(path.replace(/^\/dev\//, ""), context)) return null;
  const subject = type === "file"
    ? `The swap file ${path} is encrypted only if its file system is`
    : `The swap on ${path} is not encrypted`;
  return warning(subject, {
    meaning: "The memory of jobs, including secrets, is written to the host's disk and stays " +
      "there after their machines are removed",
    remedy: `${command("swapoff", path)} # and remove it from /etc/fstab, or encrypt it: in ` +
      "/etc/crypttab, with /dev/urandom and swap",
  });
}

const MOST_MAPPED_DEVICES = 128;

/** Whether a block device, or each mapped device below it, is encrypted; or is compressed memory. */
async function keepsSecret(device: string, context: DoctorContext): Promise<boolean> {
  const block = `/sys/block/${device}`;
  if (/^zram\d+$/.test(device)) {
    return (await readIfAllowed(context, `${block}/backing_dev`) ?? "none").trim() === "none";
  }
  if ((await readIfAllowed(context, `${block}/dm/uuid`))?.startsWith("CRYPT-")) return true;
  const below: string[] = [];
  for (let i = 0; i < MOST_MAPPED_DEVICES; i++) { // Deno lists no directory of /sys
    if (await isInSys(context, `${block}/slaves/dm-${i}`)) below.push(`dm-${i}`);
  }
  const answers = await Promise.all(below.map((device) => keepsSecret(device, context)));
  return answers.length > 0 && !answers.includes(false);
}
