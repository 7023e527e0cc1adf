// SPDX-License-Identifier: GPL-2.0-or-later
import { GIB, gib } from "../bytes.ts";
import { type DoctorContext, isLocal, type LibvirtContext, needsLibvirt } from "./check.ts";
import { type Finding, type Found, ok, problem, warning } from "./finding.ts";
import { readHostFile, readOwnUser, statHostFile } from "./host_files.ts";
import { StoragePool } from "../libvirt/storage_pool.ts";
import { type Amount, poolSpace } from "../machine/queue/host_load.ts";
import { rootOf, textAt } from "../read_xml.ts";
import { DEFAULT_CONFIG } from "../settings/settings.ts";
import { command, makePool, virsh } from "../shell.ts";

export const group = {
  name: "storage",
  checks: [needsLibvirt(checkTemplatePool), needsLibvirt(checkOverlayPool)],
};

const WRITABLE_BY_OTHERS = 0o022;

type PoolKey = "templates" | "overlays";

export function checkTemplatePool(context: LibvirtContext): Promise<Found> {
  return checkPool("templates", context);
}

export function checkOverlayPool(context: LibvirtContext): Promise<Found> {
  return checkPool("overlays", context);
}

async function checkPool(key: PoolKey, context: LibvirtContext): Promise<Found> {
  const { connection, config } = context;
  const name = config.pools[key];
  using pool = await StoragePool.find(connection, name);
  if (pool === null) return missingPool(key, context);
  const autostart = await pool.autostarts()
    ? null
    : warning(`The storage pool "${name}" does not start at boot`, {
      meaning: "After a reboot, no job can start",
      remedy: virsh(config.libvirt, "pool-autostart", name),
    });
  if (!await pool.isActive()) {
    const remedy = virsh(config.libvirt, "pool-start", name);
    const inactive = `The storage pool "${name}" is not active`;
    return [problem(inactive, { meaning: "No job can start", remedy }), autostart];
  }
  const root = rootOf(await pool.xml());
  const type = root?.attributes["type"] ?? "";
  if (key === "overlays" && !/^(dir|fs|netfs)$/.test(type)) {
    return problem(`The storage pool "${name}" has the type ${type}`, {
      meaning:
        `Machines' disks must be files, so no job can start. Set "pools.overlays" to a pool of ` +
        "type dir, fs or netfs",
    });
  }
  const path = textAt(root, "target", "path") ?? "";
  return [
    await checkSpace(key, path, await poolSpace(connection, pool), context),
    autostart,
    isLocal(context) && key === "overlays" ? await checkOwner(path, context) : null,
  ];
}

function missingPool(key: PoolKey, { config }: DoctorContext): Finding {
  const name = config.pools[key];
  if (key === "overlays" && name === DEFAULT_CONFIG.pools.overlays) {
    return ok(`The first job will create the storage pool "${name}"`);
  }
  return problem(`The storage pool "${name}" does not exist`, {
    meaning: `No job can start. To use another pool, set "pools.${key}"`,
    remedy: makePool(config.libvirt, name),
  });
}

async function checkSpace(
  key: PoolKey,
  path: string,
  { total, available }: Amount,
  context: DoctorContext,
): Promise<Finding> {
  const name = context.config.pools[key];
  const fileSystem = isLocal(context) ? await fileSystemOf(path, context) : null;
  const where = fileSystem === null ? path : `${path} (${fileSystem})`;
  const percent = Math.floor(available / total * 100);
  const space = `${gib(available)} of ${gib(total)} GiB free (${percent} %) in ${where}`;
  const grows = key === "overlays";
  if (available >= 10 * GIB && (percent >= 15 || !grows)) {
    return ok(`The storage pool "${name}": ${space}`);
  }
  const finding = grows && percent < 5 && available < 20 * GIB ? problem : warning;
  return finding(`The storage pool "${name}" has little free space: ${space}`, {
    meaning: grows
      ? "A machine is paused if its disk cannot grow, and its job fails as a system failure"
      : "There may be no room for another template",
    remedy: command("du", "--human-readable", "--all", "--max-depth=1", path),
  });
}

/** Users who can write to the directory can replace a machine's disk. */
async function checkOwner(path: string, context: DoctorContext): Promise<Finding | null> {
  const info = await statHostFile(context, path);
  if (info === null) return null;
  const { uid: own } = await readOwnUser(context);
  const isForeign = info.uid !== 0 && info.uid !== own;
  if (!isForeign && ((info.mode ?? 0) & WRITABLE_BY_OTHERS) === 0) {
    return ok(`Only this user and root can write to ${path}`);
  }
  return problem(`Other users can write to ${path}`, {
    meaning: "They could replace the disks of machines, and so read the secrets of jobs",
    remedy: `${command("chown", "root", path)} && ${command("chmod", "go-w", path)}`,
  });
}

/** The type of the file system that holds the path, or null if unknown. */
async function fileSystemOf(path: string, context: DoctorContext): Promise<string | null> {
  const mounts = (await readHostFile(context, "/proc/self/mounts") ?? "").trimEnd().split("\n")
    .map((line) => line.split(" "))
    .filter(([, at = ""]) => at === "/" || path === at || path.startsWith(`${at}/`));
  const length = (mount: readonly string[]): number => mount[1]?.length ?? 0;
  // The later of two mounts at one place hides the earlier.
  const last = mounts.reduce<string[]>((a, b) => length(b) >= length(a) ? b : a, []);
  return last[2] ?? null;
}
