// SPDX-License-Identifier: GPL-2.0-or-later
import { type DoctorContext, isConnected, needsLocalHost } from "./check.ts";
import { type Finding, type Found, ok, warning } from "./finding.ts";
import { findSetting, install, isInSys, readHostFile, readIfAllowed } from "./host_files.ts";
import { StoragePool } from "../libvirt/storage_pool.ts";
import { securityModels } from "../machine/security_models.ts";
import { rootOf, textAt } from "../read_xml.ts";
import { poolPath, restartDaemons } from "../shell.ts";

export const group = { name: "security modules", checks: [needsLocalHost(checkSecurityModules)] };

const QEMU_CONF = "/etc/libvirt/qemu.conf";
const HELPER = "usr.lib.libvirt.virt-aa-helper";
const MEANING = "A guest that breaks out of QEMU can access the disks of all other machines";
const PACKAGES = { debian: "apparmor", fedora: "selinux-policy-targeted", arch: "apparmor" };

export async function checkSecurityModules(context: DoctorContext): Promise<Found> {
  const enforce = await readIfAllowed(context, "/sys/fs/selinux/enforce");
  const hasAppArmor = await isAppArmorOn(context);
  if (!hasAppArmor && enforce === null) {
    return warning("Neither AppArmor nor SELinux is active", {
      meaning: MEANING,
      remedy: `${await install(context, PACKAGES)} # then enable it, and reboot`,
    });
  }
  const unused = await whyUnused(hasAppArmor ? "AppArmor" : "SELinux", context);
  if (unused !== null) return unused;
  if (hasAppArmor) {
    return [
      ok(`AppArmor confines machines. To see what it denies: journalctl -k -g 'apparmor="DENIED"'`),
      await checkHelperProfile(context),
    ];
  }
  if (enforce?.trim() === "1") {
    return ok("SELinux confines machines. To see what it denies: ausearch -m AVC -ts recent");
  }
  return warning("SELinux is permissive and only logs violations: ausearch -m AVC -ts recent", {
    meaning: MEANING,
    remedy: "setenforce 1 && sed -i 's/^SELINUX=.*/SELINUX=enforcing/' /etc/selinux/config",
  });
}

async function isAppArmorOn(context: DoctorContext): Promise<boolean> {
  const enabled = await readIfAllowed(context, "/sys/module/apparmor/parameters/enabled");
  return enabled?.trim() === "Y" || await isInSys(context, "/sys/kernel/security/apparmor");
}

/** Says that libvirt does not use the active module; null if it does or that is unknown. */
async function whyUnused(name: "AppArmor" | "SELinux", context: DoctorContext): Promise<Found> {
  const subject = `${name} is active, but libvirt does not use it`;
  const restart = restartDaemons("libvirtd", "virtqemud");
  const driver = await findSetting(context, QEMU_CONF, "security_driver");
  if (/\bnone\b/.test(driver ?? "")) {
    return warning(`${subject}: security_driver is none`, {
      meaning: MEANING,
      remedy: `sed -i 's/^ *security_driver/#&/' ${QEMU_CONF} && ${restart}`,
    });
  }
  if (!isConnected(context)) return null;
  if (confinesBy(name.toLowerCase(), await context.connection.capabilities())) return null;
  const load = name === "AppArmor" ? "systemctl restart apparmor.service && " : "";
  return warning(`${subject}: it was not active when libvirt started`, {
    meaning: MEANING,
    remedy: load + restart,
  });
}

/** Whether libvirt's capabilities name this security model, or none at all. */
export function confinesBy(model: string, capabilities: string): boolean {
  const models = securityModels(capabilities);
  return !models.includes("dac") || models.includes(model); // which QEMU's driver always has
}

/** libvirt's virt-aa-helper reads the header of each disk. AppArmor confines it to known paths. */
async function checkHelperProfile(context: DoctorContext): Promise<Finding | null> {
  if (!isConnected(context)) return null;
  const { connection, config } = context;
  const profile = await readHostFile(context, `/etc/apparmor.d/${HELPER}`);
  if (profile === null) return null;
  using pool = await StoragePool.find(connection, config.pools.overlays);
  const path = pool === null
    ? poolPath(config.pools.overlays) // which prepare makes
    : textAt(rootOf(await pool.xml()), "target", "path") ?? "";
  const own = await readHostFile(context, `/etc/apparmor.d/local/${HELPER}`) ?? "";
  const isKnown = /^\/(media|mnt|opt|srv|var\/lib\/libvirt\/images)\//.test(`${path}/`) ||
    `${profile}\n${own}`.includes(`${path}/`);
  if (isKnown) return null;
  return warning(`AppArmor does not let virt-aa-helper read the disks in ${path}`, {
    meaning: 'A machine may fail to start with "Could not open backing file: Permission denied"',
    remedy: `echo '"${path}/**" r,' >> /etc/apparmor.d/local/${HELPER} && ` +
      `apparmor_parser -r /etc/apparmor.d/${HELPER}`,
  });
}
