// SPDX-License-Identifier: GPL-2.0-or-later
import type { DoctorContext } from "./check.ts";
import { readHostFile } from "./host_files.ts";

type Root = Pick<DoctorContext, "root">;

/** A user of the host, with all groups. */
export interface HostUser {
  readonly name: string;
  readonly uid: number;
  readonly gids: readonly number[];
}

/** The user whom this process acts as, with the groups that it really has. */
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

/** The user of this name as the host's files know it, or null if they do not. */
export async function findUser(context: Root, name: string): Promise<HostUser | null> {
  const fields = (await readLines(context, "/etc/passwd")).find(([it]) => it === name);
  if (fields === undefined) return null;
  const groups = (await readLines(context, "/etc/group"))
    .filter(([, , , members = ""]) => members.split(",").includes(name))
    .map(([, , gid]) => Number(gid));
  return { name, uid: Number(fields[2]), gids: [Number(fields[3]), ...groups] };
}

/** The name of a group, or null if the host's files do not know it. */
export async function findGroupName(context: Root, gid: number): Promise<string | null> {
  const lines = await readLines(context, "/etc/group");
  return lines.find((fields) => Number(fields[2]) === gid)?.[0] ?? null;
}

/** What this user may do with a file, as bits such as 0o6 for reading and writing. */
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
