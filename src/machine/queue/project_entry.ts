// SPDX-License-Identifier: GPL-2.0-or-later
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { enqueue, type Entered, inOrder, type Queued } from "./queue.ts";
import { ofKind, volumeName } from "../storage/volume_names.ts";
import { shortHash } from "../../sha256.ts";

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

/** Joins the queue of the project of this path. */
export async function enterProject(
  pool: StoragePool,
  machine: string,
  { project: path, signal }: { readonly project: string; readonly signal: AbortSignal },
): Promise<Entered<ProjectEntry>> {
  const project = await shortHash(`libvirt-gci project ${path}`);
  return await enqueue(pool, {
    nameOf: (number) => volumeName(machine, "project", number, project),
    last: (volumes) => Promise.resolve(entriesOf(project, volumes).at(-1)),
    signal,
  });
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
  const entries = ofKind(volumes, "project").map(({ volume, name: machine, fields }) => {
    const [number, project] = fields;
    return { volume, machine, number: Number(number), project };
  });
  return inOrder(entries.filter((entry) => entry.project === project));
}
