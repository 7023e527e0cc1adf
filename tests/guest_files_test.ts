// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { dirname } from "node:path";
import { createVolumes } from "../src/machine/start.ts";
import { openTestHost } from "./test_host.ts";

Deno.test("files whose content a guest chooses are in a directory of its machine, and no volumes", async () => {
  await using connection = await openTestHost();
  using pool = await connection.lookupPool("libvirt-gci");
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
