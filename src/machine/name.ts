// SPDX-License-Identifier: GPL-2.0-or-later
import type { StoragePool } from "../libvirt/storage_pool.ts";
import { findOwner, type Owner, whyUnneeded } from "./owner.ts";
import { reserveName } from "./start.ts";
import { removeMachineSafely } from "./remove.ts";
import type { Stage } from "./context.ts";

/**
 * As {@linkcode reserveName}, for a name that one process at a time has: if that one was killed, what it
 * left is removed, and the name is ours.
 */
export async function reserveAbandonedName(
  pool: StoragePool,
  { name, owner }: { readonly name: string; readonly owner: Owner },
  stage: Stage,
): Promise<boolean> {
  if (await reserveName(pool, name, owner)) return true;
  const other = await findOwner(pool, name);
  if (other === "unknown") return false;
  if (other !== null) {
    const isDead = "why" in other || await whyUnneeded(other) !== null;
    if (!isDead) return false;
    await removeMachineSafely(name, { ...stage, log: () => {} });
  }
  return await reserveName(pool, name, owner);
}
