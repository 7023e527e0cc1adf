// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import {
  isOurVolume,
  machineOfVolume,
  ofKind,
  parseVolume,
  shownName,
  volumeName,
} from "../../src/machine/storage/volume_names.ts";
import { createRawVolume, removeVolumes } from "../../src/machine/storage/volumes.ts";
import { warmIds, warmVolumes } from "../../src/machine/warm/warm_image.ts";
import { openTestHost } from "../fakes/test_host.ts";

const HASH = "0123456789abcdef";
const PROCESS = "4711-1234-0123abcd";
const ID = "0123456789";
const STANDBY = `standby-${HASH}`;

/** Names of machines that look like parts of a volume's name. */
const MACHINES = ["m", "m.overlay", "m.overlay.libvirt-gci", `m.${HASH}`, "a.b-c_d"];

/** The name of each kind of volume that a machine may have. */
function volumesOf(machine: string): [volume: string, made: string, fields: string[]][] {
  return [
    [`${machine}.owner.libvirt-gci`, volumeName(machine, "owner"), []],
    [`${machine}.overlay.libvirt-gci`, volumeName(machine, "overlay"), []],
    [`${machine}.ram.libvirt-gci`, volumeName(machine, "ram"), []],
    [`${machine}.seed.libvirt-gci`, volumeName(machine, "seed"), []],
    [`${machine}.credential.libvirt-gci`, volumeName(machine, "credential"), []],
    [`${machine}.guest.libvirt-gci`, volumeName(machine, "guest"), []],
    [
      `${machine}.17-2048-${PROCESS}-${HASH}.queue.libvirt-gci`,
      volumeName(machine, "queue", 17, 2048, PROCESS, HASH),
      ["17", "2048", PROCESS, HASH],
    ],
    [
      `${machine}.17-2048-0-0-00000000-.queue.libvirt-gci`,
      volumeName(machine, "queue", 17, 2048, "0-0-00000000", ""),
      ["17", "2048", "0-0-00000000", ""],
    ],
    [
      `${machine}.17-${HASH}.project.libvirt-gci`,
      volumeName(machine, "project", 17, HASH),
      ["17", HASH],
    ],
    [`${machine}.${STANDBY}.assigned.libvirt-gci`, volumeName(machine, "assigned", STANDBY), [
      STANDBY,
    ]],
    [`${machine}.${HASH}.waiting.libvirt-gci`, volumeName(machine, "waiting", HASH), [HASH]],
  ];
}

Deno.test("a volume's name tells its machine, whatever that is called, and its fields", () => {
  for (const machine of MACHINES) {
    for (const [volume, made, fields] of volumesOf(machine)) {
      assert.equal(made, volume);
      assert.equal(machineOfVolume(volume), machine);
      assert(isOurVolume(volume));
      const kind = volume.split(".").at(-2);
      assert.deepEqual(parseVolume(volume), { volume, name: machine, kind, fields });
    }
  }
});

Deno.test("a name that is not ours belongs to no machine", () => {
  for (
    const volume of [
      "m.libvirt-gci",
      ".overlay.libvirt-gci",
      "m.overlay.libvirt-gci.0",
      "debian.qcow2",
      "m.constructor.libvirt-gci",
      "m.Overlay.libvirt-gci",
      "m.overlay.libvirt-gci\n",
      "m.queue.libvirt-gci",
      `m.17-2048-${PROCESS}.queue.libvirt-gci`,
      "m.17-0123.project.libvirt-gci",
      `m.${HASH}.assigned.libvirt-gci`,
      "m.waiting.libvirt-gci",
    ]
  ) {
    assert.equal(parseVolume(volume), null, volume);
    assert.equal(machineOfVolume(volume), null, volume);
  }
});

Deno.test("the name of an entry tells any machine and any number", () => {
  const name = fc.stringMatching(/^[a-z0-9][a-z0-9._-]{0,40}$/);
  fc.assert(fc.property(name, fc.nat(), fc.nat(), (machine, number, memoryMib) => {
    const volume = volumeName(machine, "queue", number, memoryMib, PROCESS, HASH);
    const [entry] = ofKind([volumeName(machine, "owner"), volume], "queue");
    assert.equal(entry?.name, machine);
    assert.deepEqual(entry.fields, [String(number), String(memoryMib), PROCESS, HASH]);
  }));
});

Deno.test("no volume of a warm image is a machine's, or passes for a template", () => {
  const volumes = warmVolumes({ template: "m.overlay", id: "0123456789" });
  assert.deepEqual(volumes, [
    "m.overlay.0123456789.warm-disk.libvirt-gci",
    "m.overlay.0123456789.warm-ram.libvirt-gci",
    "m.overlay.0123456789.warm-info.libvirt-gci",
  ]);
  for (const volume of volumes) {
    assert.equal(machineOfVolume(volume), null);
    assert(isOurVolume(volume));
    assert.deepEqual([...warmIds([volume])], [["0123456789", "m.overlay"]]);
  }
});

Deno.test("no volume of a template's version is a machine's", () => {
  for (const template of MACHINES) {
    for (
      const [volume, made] of [
        [`${template}.0123456789.template.libvirt-gci`, volumeName(template, "template", ID)],
        [
          `${template}.0123456789.template-info.libvirt-gci`,
          volumeName(template, "template-info", ID),
        ],
        [
          `${template}.0123456789-${PROCESS}-${HASH}.template-upload.libvirt-gci`,
          volumeName(template, "template-upload", ID, PROCESS, HASH),
        ],
      ]
    ) {
      assert.equal(made, volume);
      assert.equal(parseVolume(volume)?.name, template);
      assert.equal(machineOfVolume(volume), null);
      assert(isOurVolume(volume));
    }
    assert.equal(shownName(volumeName(template, "template", ID)), template);
  }
  assert.equal(shownName("debian-12.qcow2"), "debian-12.qcow2");
  assert.equal(shownName(volumeName("m", "overlay")), "m.overlay.libvirt-gci");
});

Deno.test("a machine's volumes are removed, and not those of a warm image of the same name", async () => {
  await using connection = await openTestHost();
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  const foreign = await pool.volumeNames();
  const warm = warmVolumes({ template: "m", id: "0123456789" });
  const named = volumesOf("m").slice(6).map(([volume]) => volume);
  for (const volume of [...warm, ...named, ...volumesOf("m.overlay").map(([volume]) => volume)]) {
    using _ = await createRawVolume(pool, volume, 0);
  }
  const removed = await removeVolumes(pool, "m", { mayHaveNamed: true });
  assert.deepEqual(removed.sort(), named.sort());
  const left = (await pool.volumeNames()).filter((volume) => !foreign.includes(volume));
  assert.equal(left.length, warm.length + volumesOf("m.overlay").length);
});
