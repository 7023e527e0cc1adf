// SPDX-License-Identifier: GPL-2.0-or-later
import { isKernelFile, readKernelFile } from "../../ffi/proc.ts";
import type { DoctorContext } from "./check.ts";
import { orMissing } from "../files.ts";

/** The root of the host's file system. */
export type Root = Pick<DoctorContext, "root">;

/** The text of a file of the host, or null if there is none. Throws if it may not be read. */
export function readHostFile({ root }: Root, path: string): Promise<string | null> {
  if (isOfKernel(root, path)) return Promise.resolve(readKernelFile(path));
  return orMissing(Deno.readTextFile(root + path));
}

export async function isInSys({ root }: Root, path: string): Promise<boolean> {
  if (isOfKernel(root, path)) return isKernelFile(path);
  return await orMissing(Deno.stat(root + path)) !== null;
}

/** Whether Deno would not read this file without all permissions. */
function isOfKernel(root: string, path: string): boolean {
  return root === "" && /^\/(proc|sys)\//.test(path);
}

/** As {@linkcode readHostFile}, and null too if this user may not read the file. */
export function readIfAllowed(context: Root, path: string): Promise<string | null> {
  return orNullIfDenied(readHostFile(context, path));
}

/** The status of the file that a path leads to, or null if there is none. */
export function statHostFile({ root }: Root, path: string): Promise<Deno.FileInfo | null> {
  return orMissing(Deno.stat(root + path));
}

/** As {@linkcode statHostFile}, and null too if this user may not look. */
export function statIfAllowed(context: Root, path: string): Promise<Deno.FileInfo | null> {
  return orNullIfDenied(statHostFile(context, path));
}

const PROGRAM_DIRECTORIES = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/** Whether the host has this program where daemons look for it. */
export async function hasProgram({ root }: Root, name: string): Promise<boolean> {
  // Does not follow links: those of /etc/alternatives lead out of any other root.
  const found = PROGRAM_DIRECTORIES.map((path) => orMissing(Deno.lstat(`${root}${path}/${name}`)));
  return (await Promise.all(found)).some((info) => info !== null);
}

/** The value of a key in a settings file of libvirt's, or null. Throws if it may not be read. */
export async function readSetting(
  context: Root,
  path: string,
  key: string,
): Promise<string | null> {
  const text = await readHostFile(context, path) ?? "";
  const line = new RegExp(`^\\s*${key}\\s*=\\s*(.*?)\\s*$`, "m").exec(text);
  return line?.[1]?.replace(/^"(.*)"$/, "$1") ?? null;
}

/** As {@linkcode readSetting}, and null too if this user may not read the file. */
export function findSetting(context: Root, path: string, key: string): Promise<string | null> {
  return orNullIfDenied(readSetting(context, path, key));
}

async function orNullIfDenied<T>(reading: Promise<T | null>): Promise<T | null> {
  try {
    return await reading;
  } catch (error) {
    if (error instanceof Deno.errors.PermissionDenied) return null;
    throw error;
  }
}

export interface HostUser {
  readonly name: string;
  readonly uid: number;
  readonly gids: readonly number[];
}

/** This process's user, with the groups that it really has. */
export async function readOwnUser(context: Root): Promise<HostUser> {
  const status = await readHostFile(context, "/proc/self/status") ?? "";
  const numbersOf = (key: string): number[] =>
    new RegExp(`^${key}:(.*)$`, "m").exec(status)?.[1]?.match(/\d+/g)?.map(Number) ?? [];
  const uid = numbersOf("Uid")[1] ?? 0; // real, effective, saved, file system
  const gids = [...numbersOf("Gid").slice(1, 2), ...numbersOf("Groups")];
  const lines = await readLines(context, "/etc/passwd");
  const name = lines.find((fields) => Number(fields[2]) === uid)?.[0] ?? String(uid);
  return { name, uid, gids };
}

/** The user of this name in the host's files, or null. */
export async function findUser(context: Root, name: string): Promise<HostUser | null> {
  const fields = (await readLines(context, "/etc/passwd")).find(([it]) => it === name);
  if (fields === undefined) return null;
  const groups = (await readLines(context, "/etc/group"))
    .filter(([, , , members = ""]) => members.split(",").includes(name))
    .map(([, , gid]) => Number(gid));
  return { name, uid: Number(fields[2]), gids: [Number(fields[3]), ...groups] };
}

/** The name of a group in the host's files, or null. */
export async function findGroupName(context: Root, gid: number): Promise<string | null> {
  const lines = await readLines(context, "/etc/group");
  return lines.find((fields) => Number(fields[2]) === gid)?.[0] ?? null;
}

/** This user's permissions for a file, as bits such as 0o6 for reading and writing. */
export function permissionsOf(
  { uid, gids }: Pick<HostUser, "uid" | "gids">,
  file: Pick<Deno.FileInfo, "mode" | "uid" | "gid">,
): number {
  const mode = file.mode ?? 0;
  if (uid === 0) return 0o7;
  if (uid === file.uid) return (mode >> 6) & 0o7;
  return (gids.includes(file.gid ?? -1) ? mode >> 3 : mode) & 0o7;
}

async function readLines(context: Root, path: string): Promise<string[][]> {
  return (await readHostFile(context, path) ?? "").split("\n").map((line) => line.split(":"));
}

export interface Packages {
  readonly debian: string;
  readonly fedora: string;
  readonly arch: string;
}

export async function install(context: Root, { debian, fedora, arch }: Packages): Promise<string> {
  const release = await readHostFile(context, "/etc/os-release") ?? "";
  const ids = [...release.matchAll(/^ID(?:_LIKE)?="?([^"\n]*)"?$/gm)].map(([, id]) => id);
  if (/fedora|rhel|centos/.test(ids.join(" "))) return `dnf install ${fedora}`;
  return /\barch/.test(ids.join(" ")) ? `pacman -S ${arch}` : `apt-get install ${debian}`;
}
