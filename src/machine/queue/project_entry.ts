// SPDX-License-Identifier: GPL-2.0-or-later
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { enqueue, inOrder, type Queued } from "./queue.ts";
import { sha256 } from "../../sha256.ts";

/**
 * A machine among those of its project: an empty volume from before the machine waits for others of the
 * project until cleanup. Its name says all, so one list of the pool's volumes tells how many machines the
 * project has, and who came first.
 */
export interface ProjectEntry extends Queued {
  readonly machine: string;
  /** A hash of the project's path. */
  readonly project: string;
}

const PLACE = /^(.+)\.(\d+)-([0-9a-f]{16})\.place\.libvirt-gci$/;

/** What a volume's name says, or null if it is no entry. */
export function parseProjectEntry(volume: string): ProjectEntry | null {
  const match = PLACE.exec(volume);
  if (match === null) return null;
  const [, machine = "", number, project = ""] = match;
  return { volume, machine, number: Number(number), project };
}

/** An entry, with the names of the pool's volumes as they were just after it came. */
export interface EnteredProject {
  readonly entry: ProjectEntry;
  readonly volumes: readonly string[];
}

/** Joins the queue of the project of this path. */
export async function enterProject(
  pool: StoragePool,
  machine: string,
  { project: path, signal }: { readonly project: string; readonly signal: AbortSignal },
): Promise<EnteredProject> {
  const project = (await sha256(`libvirt-gci project ${path}`)).slice(0, 16);
  const { volume, volumes } = await enqueue(pool, {
    nameOf: (number) => `${machine}.${number}-${project}.place.libvirt-gci`,
    last: (volumes) => Promise.resolve(entriesOf(project, volumes).at(-1)),
    signal,
  });
  const entry = parseProjectEntry(volume);
  if (entry === null) throw new Error(`"${volume}" is no entry's name`);
  return { entry, volumes };
}

/** Those of the project that came before; null if the entry is not there any more. */
export function entriesBefore(
  { volume, project }: ProjectEntry,
  volumes: readonly string[],
): ProjectEntry[] | null {
  const entries = entriesOf(project, volumes);
  const at = entries.findIndex((entry) => entry.volume === volume);
  return at < 0 ? null : entries.slice(0, at);
}

function entriesOf(project: string, volumes: readonly string[]): ProjectEntry[] {
  const entries = volumes.map(parseProjectEntry).filter((entry) => entry !== null);
  return inOrder(entries.filter((entry) => entry.project === project));
}
