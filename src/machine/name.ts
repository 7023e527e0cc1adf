// SPDX-License-Identifier: GPL-2.0-or-later
import type { StoragePool } from "../libvirt/storage_pool.ts";
import { findOwner, type Owner, whyUnneeded } from "./owner.ts";
import { claimName } from "./start.ts";
import { cleanupAnyway } from "./remove.ts";
import type { Stage } from "./context.ts";

/**
 * As {@linkcode claimName}, for a name that one process at a time has: if that one was killed, what it
 * left is removed, and the name is ours.
 */
export async function claimFromDead(
  pool: StoragePool,
  { name, owner }: { readonly name: string; readonly owner: Owner },
  stage: Stage,
): Promise<boolean> {
  if (await claimName(pool, name, owner)) return true;
  const other = await findOwner(pool, name);
  if (other === "unknown") return false;
  if (other !== null) {
    const isDead = "why" in other || await whyUnneeded(other) !== null;
    if (!isDead) return false;
    await cleanupAnyway(name, { ...stage, log: () => {} });
  }
  return await claimName(pool, name, owner);
}
