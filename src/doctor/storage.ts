// SPDX-License-Identifier: GPL-2.0-or-later
import { StoragePool } from "../libvirt/storage_pool.ts";
import { DEFAULT_OVERLAY_POOL } from "../settings/load.ts";
import { command, makePool, virsh } from "../shell.ts";
import { type Check, type DoctorContext, isLocal } from "./check.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";
import { readHostFile, statHostFile } from "./host_files.ts";
import { readOwnUser } from "./host_users.ts";
import { poolSpace } from "../machine/queue/host_load.ts";
import { rootOf, textAt } from "../read_xml.ts";

const GIB = 1024 ** 3;
const WRITABLE_BY_OTHERS = 0o022;

/** The pool of templates. */
export const checkTemplatePool: Check = (context) =>
  checkPool(context, { name: context.config.templatePool, key: "template_pool" });

/** The pool of machines' disks. */
export const checkOverlayPool: Check = (context) =>
  checkPool(context, { name: context.config.overlayPool, key: "overlay_pool" });

interface PoolName {
  readonly name: string;
  readonly key: "template_pool" | "overlay_pool";
}

async function checkPool(context: DoctorContext, poolName: PoolName): Promise<Finding[]> {
  const { connection, factsOf } = context;
  const { name, key } = poolName;
  if (connection instanceof Error) return [];
  using pool = await StoragePool.find(connection, name);
  if (pool === null) return [missingPool(context, poolName)];
  const autostart = await factsOf(connection).poolAutostarts(name)
    ? []
    : [noAutostart(context, name)];
  if (!await pool.isActive()) {
    return [
      problem(`The storage pool "${name}" is not active`, {
        meaning: "No job starts",
        remedy: virsh(context.config, "pool-start", name),
      }),
      ...autostart,
    ];
  }
  const root = rootOf(await pool.xml());
  const type = root?.attributes["type"] ?? "";
  if (key === "overlay_pool" && !/^(dir|fs|netfs)$/.test(type)) {
    return [
      problem(`The storage pool "${name}" is of the type ${type}`, {
        meaning:
          "Machines' disks are files: no job starts. Set overlay_pool to a pool of the type " +
          "dir, fs or netfs",
      }),
    ];
  }
  const path = textAt(root, "target", "path") ?? "";
  const { total: capacity, available } = await poolSpace(connection, pool);
  const local = isLocal(context);
  const fileSystem = local ? await fileSystemOf(context, path) : null;
  return [
    checkSpace(poolName, {
      ...{ capacity, available, path },
      where: fileSystem === null ? path : `${path} (${fileSystem})`,
    }),
    ...autostart,
    ...local && key === "overlay_pool" ? await checkOwner(context, path) : [],
  ];
}

function missingPool(context: DoctorContext, { name, key }: PoolName): Finding {
  if (key === "overlay_pool" && name === DEFAULT_OVERLAY_POOL) {
    return ok(`The storage pool "${name}" is made by the first job`);
  }
  return problem(`There is no storage pool "${name}"`, {
    meaning: `No job starts. If another pool is meant, set ${key}`,
    remedy: makePool(context.config, name),
  });
}

function noAutostart(context: DoctorContext, name: string): Finding {
  return warning(`The storage pool "${name}" does not start with the host`, {
    meaning: "After a reboot, no job starts",
    remedy: virsh(context.config, "pool-autostart", name),
  });
}

function checkSpace(
  { name, key }: PoolName,
  { capacity, available, path, where }: {
    readonly capacity: number;
    readonly available: number;
    readonly path: string;
    readonly where: string;
  },
): Finding {
  const subject = `The storage pool "${name}"`;
  const percent = Math.floor(available / capacity * 100);
  const space = `${gib(available)} of ${gib(capacity)} GiB free (${percent} %)`;
  if (percent >= 15 && available >= 10 * GIB) return ok(`${subject}: ${space} in ${where}`);
  const grows = key === "overlay_pool";
  if (!grows && available >= 10 * GIB) return ok(`${subject}: ${space} in ${where}`);
  const finding = grows && percent < 5 && available < 20 * GIB ? problem : warning;
  return finding(`${subject} has little space: ${space} in ${where}`, {
    meaning: grows
      ? "A machine whose disk cannot grow is halted, and its job fails as the host's fault"
      : "There may be no room for another template",
    remedy: command("du", "--human-readable", "--all", "--max-depth=1", path),
  });
}

function gib(bytes: number): string {
  return (bytes / GIB).toFixed(bytes < 10 * GIB ? 1 : 0);
}

/** Who may write to the directory may exchange the disk of a job's machine. */
async function checkOwner(context: DoctorContext, path: string): Promise<Finding[]> {
  const info = await statHostFile(context, path);
  if (info === null) return [];
  const { uid: own } = await readOwnUser(context);
  const isForeign = info.uid !== 0 && info.uid !== own;
  if (!isForeign && ((info.mode ?? 0) & WRITABLE_BY_OTHERS) === 0) {
    return [ok(`Nobody else may write to ${path}`)];
  }
  return [
    problem(`Others may write to ${path}`, {
      meaning: "They may exchange the disks of machines, and so read the secrets of jobs",
      remedy: `${command("chown", "root", path)} && ${command("chmod", "go-w", path)}`,
    }),
  ];
}

/** The kind of the file system that holds the path, or null if nobody can tell. */
async function fileSystemOf(context: DoctorContext, path: string): Promise<string | null> {
  const mounts = (await readHostFile(context, "/proc/self/mounts") ?? "").trimEnd().split("\n")
    .map((line) => line.split(" "))
    .filter(([, at = ""]) => at === "/" || path === at || path.startsWith(`${at}/`));
  const length = (mount: readonly string[]): number => mount[1]?.length ?? 0;
  // Of two mounts at one place, the later hides the earlier.
  const last = mounts.reduce<string[]>((a, b) => length(b) >= length(a) ? b : a, []);
  return last[2] ?? null;
}
