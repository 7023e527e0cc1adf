// SPDX-License-Identifier: GPL-2.0-or-later
import { orMissing } from "../../files.ts";
import { refuseForeign } from "../../guest/key_file.ts";
import { isMachineName } from "../../job/job.ts";

/** A file of a post-mortem. */
export interface KeptFile {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** How many post-mortems are kept, and how many bytes together. */
export interface Bounds {
  readonly count: number;
  readonly bytes: number;
}

const PROJECT = "project";

/** The file of a post-mortem with the project's name. */
export function projectFile(project: string): KeptFile {
  return { name: PROJECT, bytes: new TextEncoder().encode(`${project}\n`) };
}

const UNFINISHED = ".new-";
const UNFINISHED_MS = 3_600_000;

/** The time and the machine of a post-mortem, by its directory's name; null if it is none. */
function parseName(name: string): { readonly time: string; readonly machine: string } | null {
  const [, time = "", machine = ""] = /^(\d{8}T\d{9}Z)-(.+)$/.exec(name) ?? [];
  return isMachineName(machine) ? { time, machine } : null;
}

/** A time for a name. Names sort by time. */
function stampOf(time: Date): string {
  return time.toISOString().replace(/[-:.]/g, "");
}

/**
 * Writes a post-mortem, complete or not at all, into a new directory in `parent` that only this user may
 * read. Gives its path. Throws what Deno throws, and SystemFailure if others may write to `parent`.
 */
export async function writePostMortem(
  parent: string,
  machine: string,
  files: readonly KeptFile[],
): Promise<string> {
  await Deno.mkdir(parent, { recursive: true, mode: 0o700 });
  await refuseForeign(parent);
  const name = `${stampOf(new Date())}-${machine}`;
  const unfinished = `${parent}/${UNFINISHED}${name}`;
  await Deno.mkdir(unfinished, { mode: 0o700 });
  try {
    for (const { name, bytes } of files) {
      await Deno.writeFile(`${unfinished}/${name}`, bytes, { createNew: true, mode: 0o600 });
    }
    await Deno.rename(unfinished, `${parent}/${name}`);
  } catch (error) {
    await Deno.remove(unfinished, { recursive: true }).catch(() => {}); // the first error counts
    throw error;
  }
  return `${parent}/${name}`;
}

/** The machine's newest post-mortem since then, or null. */
export async function findPostMortem(
  parent: string,
  machine: string,
  since: Date,
): Promise<string | null> {
  const found = (await listDirectories(parent)).filter((name) => {
    const parsed = parseName(name);
    return parsed?.machine === machine && parsed.time >= stampOf(since);
  });
  const newest = found.sort().at(-1);
  return newest === undefined ? null : `${parent}/${newest}`;
}

interface PostMortem {
  readonly path: string;
  /** Null if unknown. */
  readonly project: string | null;
  readonly bytes: number;
}

/**
 * Removes post-mortems until the others are within the limits: first those that are too large alone, then
 * the oldest of the project that has most, so that no project pushes out another's. Also removes what a
 * dead process left unfinished. Other names stay. Gives the removed paths. Safe beside other processes.
 */
export async function prunePostMortems(parent: string, bounds: Bounds): Promise<string[]> {
  const names = await listDirectories(parent);
  const removed: string[] = [];
  let kept: PostMortem[] = []; // the oldest first
  for (const name of names.filter((name) => parseName(name) !== null).sort()) {
    const path = `${parent}/${name}`;
    const found = {
      path,
      project: await orMissing(Deno.readTextFile(`${path}/${PROJECT}`)),
      bytes: await sizeOf(path),
    };
    if (found.bytes > bounds.bytes) removed.push(path);
    else kept.push(found);
  }
  for (;;) {
    const victim = oldestOfMost(kept, bounds);
    if (victim === null) break;
    removed.push(victim.path);
    kept = kept.filter((other) => other !== victim);
  }
  for (const path of removed) await orMissing(Deno.remove(path, { recursive: true }));
  const dead = stampOf(new Date(Date.now() - UNFINISHED_MS));
  for (const name of names.filter((name) => name.startsWith(UNFINISHED))) {
    const parsed = parseName(name.slice(UNFINISHED.length));
    if (parsed === null || parsed.time >= dead) continue;
    await orMissing(Deno.remove(`${parent}/${name}`, { recursive: true }));
  }
  return removed;
}

/** The next to remove; null if all are within the limits. */
function oldestOfMost(oldestFirst: readonly PostMortem[], bounds: Bounds): PostMortem | null {
  const sum = (of: readonly PostMortem[]): number => of.reduce((sum, { bytes }) => sum + bytes, 0);
  const isTooMany = oldestFirst.length > bounds.count;
  if (!isTooMany && sum(oldestFirst) <= bounds.bytes) return null;
  const weight = (of: readonly PostMortem[]): number => isTooMany ? of.length : sum(of);
  const projects = [...Map.groupBy(oldestFirst, ({ project }) => project).values()];
  const most = Math.max(...projects.map(weight));
  return projects.find((of) => weight(of) === most)?.[0] ?? null;
}

async function listDirectories(parent: string): Promise<string[]> {
  const entries = await Array.fromAsync(Deno.readDir(parent)).catch((error) => {
    if (error instanceof Deno.errors.NotFound) return [];
    throw error; // such as for a file of this name
  });
  return entries.filter(({ isDirectory }) => isDirectory).map(({ name }) => name);
}

async function sizeOf(directory: string): Promise<number> {
  let bytes = 0;
  for (const { name } of await orMissing(Array.fromAsync(Deno.readDir(directory))) ?? []) {
    bytes += (await orMissing(Deno.lstat(`${directory}/${name}`)))?.size ?? 0;
  }
  return bytes;
}
