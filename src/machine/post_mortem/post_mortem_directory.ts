// SPDX-License-Identifier: GPL-2.0-or-later
import { refuseForeign } from "../../guest/key_file.ts";
import { isMachineName } from "../../job/job.ts";

/** A file of a post-mortem. */
export interface KeptFile {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** How many post-mortems may stay, and how many bytes they may have together. */
export interface Bounds {
  readonly count: number;
  readonly bytes: number;
}

const PROJECT = "project";

/** The file of a post-mortem that says whose it is: those of a project make room for its next. */
export function projectFile(project: string): KeptFile {
  return { name: PROJECT, bytes: new TextEncoder().encode(`${project}\n`) };
}

const UNFINISHED = ".new-";
const UNFINISHED_MS = 3_600_000;

/** The time and the machine of a post-mortem, by its directory's name; null if it is not ours. */
function parseName(name: string): { readonly time: string; readonly machine: string } | null {
  const [, time = "", machine = ""] = /^(\d{8}T\d{9}Z)-(.+)$/.exec(name) ?? [];
  return isMachineName(machine) ? { time, machine } : null;
}

/** A time as names have it: their order is that of the times. */
function stampOf(time: Date): string {
  return time.toISOString().replace(/[-:.]/g, "");
}

/**
 * Writes a post-mortem of this machine, whole or not at all, into a directory of its own in
 * `parent`, which this user alone may read, and gives its path. Throws what Deno throws, and
 * SystemFailure if others may write to `parent`.
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
    await Deno.remove(unfinished, { recursive: true }).catch(() => {}); // the first failure counts
    throw error;
  }
  return `${parent}/${name}`;
}

/** The newest post-mortem of the machine that was written since then, or null. */
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

/** A post-mortem that is there. */
interface PostMortem {
  readonly path: string;
  /** Null if nothing says it, as in those of earlier versions. */
  readonly project: string | null;
  readonly bytes: number;
}

/**
 * Removes post-mortems until the others are within the bounds, and what a process left unfinished: the
 * oldest of the project that has most, so that nobody's failures push out another's. What is too large
 * alone takes no other's place. Gives the paths of those it removed. Safe beside others: each goes by what
 * is there, and what has another name stays.
 */
export async function prunePostMortems(parent: string, bounds: Bounds): Promise<string[]> {
  const names = await listDirectories(parent);
  const removed: string[] = [];
  let kept: PostMortem[] = []; // the oldest first
  for (const name of names.filter((name) => parseName(name) !== null).sort()) {
    const path = `${parent}/${name}`;
    const found = { path, project: await readProject(path), bytes: await sizeOf(path) };
    if (found.bytes > bounds.bytes) removed.push(path);
    else kept.push(found);
  }
  for (;;) {
    const victim = oldestOfMost(kept, bounds);
    if (victim === null) break;
    removed.push(victim.path);
    kept = kept.filter((other) => other !== victim);
  }
  for (const path of removed) await remove(path);
  const dead = stampOf(new Date(Date.now() - UNFINISHED_MS));
  for (const name of names.filter((name) => name.startsWith(UNFINISHED))) {
    const parsed = parseName(name.slice(UNFINISHED.length));
    if (parsed !== null && parsed.time < dead) await remove(`${parent}/${name}`);
  }
  return removed;
}

/** The next to be removed; null if all are within the bounds. Of two that have as much, the older. */
function oldestOfMost(oldestFirst: readonly PostMortem[], bounds: Bounds): PostMortem | null {
  const sum = (of: readonly PostMortem[]): number => of.reduce((sum, { bytes }) => sum + bytes, 0);
  const isTooMany = oldestFirst.length > bounds.count;
  if (!isTooMany && sum(oldestFirst) <= bounds.bytes) return null;
  const weight = (of: readonly PostMortem[]): number => isTooMany ? of.length : sum(of);
  const projects = [...Map.groupBy(oldestFirst, ({ project }) => project).values()];
  const most = Math.max(...projects.map(weight));
  return projects.find((of) => weight(of) === most)?.[0] ?? null;
}

async function readProject(directory: string): Promise<string | null> {
  return await orGone(Deno.readTextFile(`${directory}/${PROJECT}`), null);
}

async function listDirectories(parent: string): Promise<string[]> {
  const entries = await orGone(Array.fromAsync(Deno.readDir(parent)), []);
  return entries.filter(({ isDirectory }) => isDirectory).map(({ name }) => name);
}

async function sizeOf(directory: string): Promise<number> {
  let bytes = 0;
  for (const { name } of await orGone(Array.fromAsync(Deno.readDir(directory)), [])) {
    bytes += (await orGone(Deno.lstat(`${directory}/${name}`), null))?.size ?? 0;
  }
  return bytes;
}

async function remove(directory: string): Promise<void> {
  await orGone(Deno.remove(directory, { recursive: true }), undefined);
}

/** What the promise gives, or this where another process has just removed what it is about. */
async function orGone<T, U>(promise: Promise<T>, otherwise: U): Promise<T | U> {
  try {
    return await promise;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return otherwise;
    throw error;
  }
}
