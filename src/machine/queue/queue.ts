// SPDX-License-Identifier: GPL-2.0-or-later
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { createRawVolume, removeVolume } from "../storage/volumes.ts";
import { sleep } from "../../wait.ts";

/** An empty volume that stands in a queue by its name alone. */
export interface Queued {
  /** The volume's name. */
  readonly volume: string;
  /** Who has a smaller one came first: the time in milliseconds, or a little more. */
  readonly number: number;
}

/** An entry, with the names of the pool's volumes as they were just after it came. */
export interface Entered<T> {
  readonly entry: T;
  readonly volumes: readonly string[];
}

/** These, the first first. */
export function inOrder<T extends Queued>(queued: readonly T[]): T[] {
  return queued.toSorted((a, b) => a.number - b.number || (a.volume < b.volume ? -1 : 1));
}

/**
 * Makes such a volume at the end of a queue. `last` finds the last of the queue among all volumes.
 * Whoever has a greater number has seen this one when it looks who is ahead: a greater one that is there
 * already may have looked before, so this one is given back and made anew behind it.
 */
export async function enqueue<T extends Queued>(
  pool: StoragePool,
  { nameOf, last, signal }: {
    readonly nameOf: (number: number) => string;
    readonly last: (volumes: readonly string[]) => Promise<T | undefined>;
    readonly signal: AbortSignal;
  },
): Promise<Entered<T>> {
  let greatest = 0;
  for (let attempt = 0;; attempt++) {
    signal.throwIfAborted();
    const volume = nameOf(Math.max(Date.now(), greatest + 1));
    {
      using _ = await createRawVolume(pool, volume, 0);
    }
    const volumes = await pool.volumeNames();
    const found = await last(volumes);
    if (found?.volume === volume) return { entry: found, volumes };
    await removeVolume(pool, volume);
    greatest = found?.number ?? 0;
    await sleep(Math.random() * 2 ** Math.min(attempt, 8), signal); // many may have come at once
  }
}
