// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../../errors.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { isLost } from "../../libvirt/error.ts";
import { StoragePool } from "../../libvirt/storage_pool.ts";
import { failureOf, type Host } from "../context.ts";
import { DEFAULT_CONFIG } from "../../settings/settings.ts";
import { makePool, poolPath, virsh } from "../../shell.ts";
import { retry, sleep } from "../../wait.ts";
import { xml } from "../../xml.ts";

/** The pool, or null if it does not exist or is not active. */
export async function findActivePool(
  connection: Connection,
  name: string,
): Promise<StoragePool | null> {
  using undo = new DisposableStack();
  const pool = undo.use(await StoragePool.find(connection, name));
  if (pool === null || !await pool.isActive()) return null;
  undo.move();
  return pool;
}

/** The active pool of this name in the setting `key`. Throws SystemFailure. */
export async function lookupActivePool(
  connection: Connection,
  name: string,
  key: string,
): Promise<StoragePool> {
  const pool = await StoragePool.find(connection, name);
  if (pool === null) {
    throw new SystemFailure({
      fault: "storage",
      what: `The host has no storage pool "${name}"`,
      advice: `Create it: ${makePool(connection, name)}; or set "${key}" to another`,
    });
  }
  using undo = new DisposableStack();
  undo.use(pool);
  if (await pool.isActive()) {
    undo.move();
    return pool;
  }
  throw new SystemFailure({
    fault: "storage",
    what: `The storage pool "${name}" is not active`,
    advice: `Start it: ${virsh(connection, "pool-start", name)} && ` +
      virsh(connection, "pool-autostart", name),
  });
}

/**
 * Creates and starts a pool in /var/lib/libvirt/images, where AppArmor lets libvirt read a disk's template,
 * unless the pool exists. Many may do so at once. Throws SystemFailure.
 */
export async function createDirPool(
  connection: Connection,
  name: string,
  key = "pools.overlays",
): Promise<void> {
  using found = await StoragePool.find(connection, name);
  if (found !== null) {
    await becomesActive(connection, name); // another prepare may be starting it
    return;
  }
  try {
    using pool = await StoragePool.define(connection, name, dirPoolXml(name, poolPath(name)));
    await pool.buildAndStart();
  } catch (cause) {
    if (!isLost(cause) && await becomesActive(connection, name)) return; // another prepare was faster
    throw failureOf(cause, `created the storage pool "${name}"`, {
      fault: "storage",
      what: `Cannot create the storage pool "${name}" in ${poolPath(name)}`,
      advice: 'Add this user to the group libvirt, or set "' + key + '" to an existing pool',
    });
  }
}

async function becomesActive(connection: Connection, name: string): Promise<boolean> {
  for (let attempt = 0; attempt < 20; attempt++) {
    using pool = await findActivePool(connection, name);
    if (pool !== null) return true;
    await sleep(100);
  }
  return false;
}

/** Lets libvirt look for new files in the pool. Throws LibvirtError. */
export function refreshPool(pool: StoragePool): Promise<void> {
  return retry(() => pool.refresh(), { tries: 50 }); // libvirt refuses while it creates a volume
}

/** The XML of a storage pool in a directory. */
export function dirPoolXml(name: string, path: string): string {
  return xml`
    <pool type="dir">
      <name>${name}</name>
      <target>
        <path>${path}</path>
      </target>
    </pool>
  `.toString();
}

/** The pool for overlays. The default one is created at its first use. */
export async function lookupOverlayPool({ connection, config }: Host): Promise<StoragePool> {
  const name = config.pools.overlays;
  if (name === DEFAULT_CONFIG.pools.overlays) await createDirPool(connection, name);
  return await lookupActivePool(connection, name, "pools.overlays");
}

/** Creates the default pool for templates, unless it exists or the settings have another. */
export async function createTemplatePool({ connection, config }: Host): Promise<void> {
  const name = config.pools.templates;
  if (name !== DEFAULT_CONFIG.pools.templates) return;
  await createDirPool(connection, name, "pools.templates");
}
