// SPDX-License-Identifier: GPL-2.0-or-later
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Host } from "../context.ts";
import { createDirPool, lookupActivePool } from "./pools.ts";
import { DEFAULT_CONFIG } from "../../settings/settings.ts";

/** The pool for overlays. The one that nobody chose is made at its first use. */
export async function lookupOverlayPool({ connection, config }: Host): Promise<StoragePool> {
  const name = config.pools.overlays;
  if (name === DEFAULT_CONFIG.pools.overlays) await createDirPool(connection, name);
  return await lookupActivePool(connection, name, "pools.overlays");
}
