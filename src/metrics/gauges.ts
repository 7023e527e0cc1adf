// SPDX-License-Identifier: GPL-2.0-or-later
import { Domain } from "../libvirt/domain.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import type { Host } from "../machine/context.ts";
import { machinesOf } from "../machine/inventory.ts";
import { poolSpace } from "../machine/queue/host_load.ts";
import { findActivePool } from "../machine/storage/pools.ts";
import type { Gauges } from "./metrics.ts";

/** Counts machines and their space; null without the pool. `disks` takes calls for each machine. */
export async function measure(
  { connection, config }: Host,
  { disks }: { readonly disks: boolean },
): Promise<Gauges | null> {
  using pool = await findActivePool(connection, config.pools.overlays);
  if (pool === null) return null;
  const machines = machinesOf(await pool.volumeNames());
  using domains = await Domain.listActive(connection);
  const running = domains.filter(({ name }) => machines.has(name)).length;
  const space = await poolSpace(connection, pool);
  return {
    running,
    stopped: machines.size - running,
    poolCapacityBytes: space.total,
    poolAvailableBytes: space.available,
    diskBytes: disks ? await diskBytes(pool, [...machines.values()].flat()) : null,
  };
}

async function diskBytes(pool: StoragePool, volumes: readonly string[]): Promise<number> {
  let sum = 0;
  for (const name of volumes) {
    using volume = await pool.findVolume(name);
    sum += await volume?.allocationBytes().catch(() => 0) ?? 0; // it may be deleted at any time
  }
  return sum;
}
