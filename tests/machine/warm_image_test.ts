// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { volumeName } from "../../src/machine/storage/volume_names.ts";
import { createOverlay, createRawVolume } from "../../src/machine/storage/volumes.ts";
import {
  cpuOf,
  findDeadWarmImages,
  removeWarmImage,
  warmOrigin,
} from "../../src/machine/warm/warm_image.ts";
import { DEFAULT_CONFIG } from "../../src/settings/settings.ts";
import { merged } from "../fakes/merged.ts";
import { openTestHost } from "../fakes/test_host.ts";

Deno.test("a warm image holds when the host's clock is measured anew, and not on another processor", () => {
  const capabilities = (hertz: number, microcode: number): string =>
    `<capabilities><host><cpu><arch>x86_64</arch><model>Skylake-Client</model>
      <microcode version="${microcode}"/><counter name="tsc" frequency="${hertz}" scaling="no"/>
      <feature name="ds"/></cpu></host></capabilities>`;
  assert.equal(cpuOf(capabilities(2397195000, 1)), cpuOf(capabilities(2397223000, 1)));
  assert.notEqual(cpuOf(capabilities(2397195000, 1)), cpuOf(capabilities(2397195000, 2)));
});

Deno.test("a warm image whose user cloud-init made with another shell does not hold", async () => {
  await using connection = await openTestHost();
  const template = {
    pool: "base_imgs",
    volume: "t.qcow2",
    path: "/t",
    format: "qcow2",
    capacityBytes: 1,
    modified: "",
  };
  for (const login of ["cloud-init", "systemd", "template"] as const) {
    const origin = (shell: "bash" | "sh") =>
      warmOrigin(connection, {
        template,
        settings: merged(DEFAULT_CONFIG.machine, { ssh: { login }, guest: { shell } }),
      });
    const isSame = JSON.stringify(await origin("sh")) === JSON.stringify(await origin("bash"));
    assert.equal(isSame, login !== "cloud-init", login);
  }
});

const IMAGE = { template: "t", id: "0123456789" };

Deno.test("the disk of a warm image stays while a machine's disk stands on it", async () => {
  await using connection = await openTestHost();
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  const disk = volumeName(IMAGE.template, "warm-disk", IMAGE.id);
  using base = await createRawVolume(pool, disk, 1);
  const template = { path: await base.path(), format: "raw", capacityBytes: 1 };
  const name = "m.overlay.libvirt-gci";
  using overlay = await createOverlay(pool, name, { template, capacityBytes: 1 });
  assert.deepEqual(await removeWarmImage(pool, IMAGE), ["m"]);
  assert((await pool.volumeNames()).includes(disk));
  await overlay.delete();
  assert.deepEqual((await findDeadWarmImages(pool)).map(({ id }) => id), [IMAGE.id]);
  assert.deepEqual(await removeWarmImage(pool, IMAGE), []);
  assert(!(await pool.volumeNames()).includes(disk));
});
