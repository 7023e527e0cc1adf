// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { dirname } from "node:path";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { createVolumes } from "../../src/machine/storage/disks.ts";
import { createGuestDirectory, removeGuestFiles } from "../../src/machine/storage/guest_files.ts";
import { dirPoolXml } from "../../src/machine/storage/pools.ts";
import { removeVolume } from "../../src/machine/storage/volumes.ts";
import { sleep } from "../../src/wait.ts";
import { openTestHost } from "../fakes/test_host.ts";

Deno.test("files whose content a guest chooses are in a directory of its machine, and no volumes", async () => {
  await using connection = await openTestHost();
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  const before = await pool.volumeNames();
  const contents = { seed: null, credential: null, efi: true };
  const { consolePath, nvramPath } = await createVolumes(pool, "m", contents);
  const made = (await pool.volumeNames()).filter((name) => !before.includes(name));
  assert.deepEqual(made, ["m.guest.libvirt-gci"]);
  using directory = await pool.lookupVolume("m.guest.libvirt-gci");
  assert.match(await directory.xml(), /<format type='dir'\/>/);
  const path = await directory.path();
  assert.deepEqual([consolePath, nvramPath ?? ""].map(dirname), [path, path]);
});

Deno.test("the directory of a guest's files that somebody else removes meanwhile is none", async () => {
  await using connection = await openTestHost();
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  using directory = await createGuestDirectory(pool, "m");
  const path = await directory.path();
  // What libvirt says of a directory that is gone is what it says of this one: it opens no pool there.
  using _taken = await StoragePool.create(connection, "taken", dirPoolXml("taken", path));
  const removed = removeGuestFiles({ connection, pool, machine: "m" });
  await sleep(100); // it has the path, and tries to open the pool
  assert(await removeVolume(pool, "m.guest.libvirt-gci"));
  assert.equal(await removed, false);
});

Deno.test("a guest's directory that is there but cannot be read is an error", async () => {
  await using connection = await openTestHost();
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  using directory = await createGuestDirectory(pool, "m");
  const path = await directory.path();
  using _taken = await StoragePool.create(connection, "taken", dirPoolXml("taken", path));
  await assert.rejects(removeGuestFiles({ connection, pool, machine: "m" }), /conflict/);
});
