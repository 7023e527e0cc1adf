// SPDX-License-Identifier: GPL-2.0-or-later
import { StoragePool } from "../libvirt/storage_pool.ts";
import { poolPath, restartDaemons } from "../shell.ts";
import { type DoctorContext, isLocal } from "./check.ts";
import { type Finding, ok, warning } from "./finding.ts";
import { install } from "./install.ts";
import { isInSys, readHostFile, readIfAllowed, readLibvirtSetting } from "./host_files.ts";
import { childrenOf, find, rootOf, textAt } from "../read_xml.ts";

const HELPER = "usr.lib.libvirt.virt-aa-helper";
const MEANING = "A guest that breaks out of QEMU reaches the disks of all other machines";

/** AppArmor or SELinux, and where each says that it stopped a machine. */
export async function checkSecurityModules(context: DoctorContext): Promise<Finding[]> {
  if (!isLocal(context)) return [];
  const driver = readLibvirtSetting(
    await readIfAllowed(context, "/etc/libvirt/qemu.conf"),
    "security_driver",
  );
  const appArmor = await hasAppArmor(context);
  const enforce = await readIfAllowed(context, "/sys/fs/selinux/enforce");
  if (!appArmor && enforce === null) {
    const packages = { debian: "apparmor", fedora: "selinux-policy-targeted", arch: "apparmor" };
    return [
      warning("Neither AppArmor nor SELinux is active", {
        meaning: MEANING,
        remedy: `${await install(context, packages)} # and boot the host with it`,
      }),
    ];
  }
  const name = appArmor ? "AppArmor" : "SELinux";
  if (driver !== null && /\bnone\b/.test(driver)) {
    return [
      warning(`${name} is active, and libvirt does not use it: security_driver is none`, {
        meaning: MEANING,
        remedy: "sed -i 's/^ *security_driver/#&/' /etc/libvirt/qemu.conf && " +
          restartDaemons("libvirtd", "virtqemud"),
      }),
    ];
  }
  const { connection } = context;
  if (
    !(connection instanceof Error) &&
    !confinesBy(name.toLowerCase(), await connection.capabilities())
  ) {
    return [
      warning(`${name} is active, and libvirt does not use it: it was not there when it started`, {
        meaning: MEANING,
        remedy: (appArmor ? "systemctl restart apparmor.service && " : "") +
          restartDaemons("libvirtd", "virtqemud"),
      }),
    ];
  }
  if (appArmor) {
    return [
      ok(`AppArmor confines machines; what it denies: journalctl -k -g 'apparmor="DENIED"'`),
      ...await checkHelperProfile(context),
    ];
  }
  if (enforce?.trim() === "1") {
    return [ok("SELinux confines machines; what it denies: ausearch -m AVC -ts recent")];
  }
  return [
    warning("SELinux is permissive: it only logs, to be read by ausearch -m AVC -ts recent", {
      meaning: MEANING,
      remedy: "setenforce 1 && sed -i 's/^SELINUX=.*/SELINUX=enforcing/' /etc/selinux/config",
    }),
  ];
}

/** Whether libvirt confines machines by this, as its capabilities have it; true where they do not say. */
export function confinesBy(model: string, capabilities: string): boolean {
  const models = childrenOf(find(rootOf(capabilities), "host"), "secmodel")
    .map((element) => textAt(element, "model"));
  return !models.includes("dac") || models.includes(model); // which QEMU's driver always has
}

async function hasAppArmor(context: DoctorContext): Promise<boolean> {
  const enabled = await readIfAllowed(context, "/sys/module/apparmor/parameters/enabled");
  return enabled?.trim() === "Y" ||
    await isInSys(context, "/sys/kernel/security/apparmor");
}

/**
 * libvirt has virt-aa-helper read the header of each disk, to let the machine read the template
 * below it. The helper is confined too: by its file's ending, or by directories.
 */
async function checkHelperProfile(context: DoctorContext): Promise<Finding[]> {
  const { connection, config } = context;
  if (connection instanceof Error) return [];
  const profile = await readHostFile(context, `/etc/apparmor.d/${HELPER}`);
  if (profile === null) return [];
  using pool = await StoragePool.find(connection, config.overlayPool);
  const path = pool === null
    ? poolPath(config.overlayPool) // which prepare makes
    : textAt(rootOf(await pool.xml()), "target", "path") ?? "";
  const own = await readHostFile(context, `/etc/apparmor.d/local/${HELPER}`) ?? "";
  const isKnown = /^\/(media|mnt|opt|srv|var\/lib\/libvirt\/images)\//.test(`${path}/`) ||
    `${profile}\n${own}`.includes(`${path}/`);
  if (isKnown) return [];
  return [
    warning(`AppArmor keeps virt-aa-helper from reading the disks in ${path}`, {
      meaning: 'A machine may fail to start with "Could not open backing file: Permission denied"',
      remedy: `echo '"${path}/**" r,' >> /etc/apparmor.d/local/${HELPER} && ` +
        `apparmor_parser -r /etc/apparmor.d/${HELPER}`,
    }),
  ];
}
