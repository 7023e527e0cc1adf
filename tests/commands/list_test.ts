// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { type ListedMachine, listJson, listMachines, listTable } from "../../src/commands/list.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { readMetadata, writeMetadata } from "../../src/machine/metadata.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { createRawVolume } from "../../src/machine/storage/volumes.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import { JOB, testStage } from "../fakes/test_stage.ts";

const SOON_MS = Date.now() + 5_430_000; // in an hour and a half
const SOON = new Date(SOON_MS).toISOString();

Deno.test("list shows machines that are ready, that start, that are kept, that nobody needs, and what is left", async () => {
  await using connection = await openTestHost();
  await using guest = await TestGuest.start();
  using stage = testStage(connection, guest);
  assert.deepEqual(await listMachines(stage), []);
  const job = { ...JOB, attemptDir: "/nonexistent/attempt" };
  for (const machine of ["m-kept", "m-killed", "m-orphan", "m-ready", "m-starting"]) {
    await prepare({ ...job, machine }, {}, stage);
  }
  for (
    const [machine, differences] of [
      ["m-starting", { address: "" }],
      ["m-orphan", { runner: "" }],
      ["m-killed", { runner: "1 1 0", isRunner: true, attemptDir: "/" }],
      ["m-kept", { runner: "", keptUntil: SOON_MS, deadline: SOON_MS }],
    ] as const
  ) {
    using domain = await Domain.lookup(connection, machine);
    const metadata = await readMetadata(domain);
    assert(metadata);
    await writeMetadata(domain, { ...metadata, ...differences });
  }
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  {
    using _ = await createRawVolume(pool, "m-left.overlay.libvirt-gci", 3 * 1024 ** 2);
  }
  const machines = await listMachines(stage);
  assert.deepEqual(machines.map(({ machine, state }) => [machine, state]), [
    ["m-kept", "kept"],
    ["m-killed", "orphan"],
    ["m-left", "leftover"],
    ["m-orphan", "orphan"],
    ["m-ready", "ready"],
    ["m-starting", "starting"],
  ]);
  const [kept, killed, left, orphan, ready] = machines;
  assert(kept && killed && left && orphan && ready);
  assert.deepEqual([kept.keptUntil, ready.keptUntil, left.keptUntil], [SOON, null, null]);
  assert.deepEqual([left.job, left.diskBytes], [null, 3 * 1024 ** 2]);
  assert.match(orphan.why ?? "", /runner has ended/);
  assert.equal(killed.why, "its runner has ended"); // though the attempt's directory is there
  assert.deepEqual([ready.job, ready.project, ready.template], ["4242", "grp/proj", "debian-12"]);
  assert.match(ready.address ?? "", /^127\.99\.0\./);
  assert.equal(ready.memoryMib, 2048);
  assert.deepEqual(JSON.parse(listJson(machines)), machines);
  for (const { machine } of machines) await removeMachine(machine, stage);
});

const MACHINE: ListedMachine = {
  domain: "m",
  machine: "m",
  job: "",
  project: "grp/proj",
  template: "debian-12",
  created: new Date(Date.now() - 7200_000).toISOString(),
  state: "ready",
  why: null,
  keptUntil: null,
  address: "192.0.2.1",
  memoryMib: 2048,
  diskBytes: 5 * 1024 ** 2,
};

Deno.test("the table has a line for each machine, in columns", () => {
  const nothing = {
    job: null,
    project: null,
    template: null,
    created: null,
    address: null,
    memoryMib: null,
    diskBytes: 0,
  };
  const table = listTable([MACHINE, {
    ...MACHINE,
    ...nothing,
    machine: "longer",
    state: "leftover",
  }]);
  assert.deepEqual(table.split("\n"), [
    "MACHINE  JOB  PROJECT   TEMPLATE   AGE  STATE     ADDRESS    MEMORY    DISK",
    "m        -    grp/proj  debian-12  2 h  ready     192.0.2.1  2048 MiB  5 MiB",
    "longer   -    -         -          -    leftover  -          -         0 MiB",
  ]);
});

Deno.test("colours leave the columns as they are", () => {
  const machines = (["ready", "starting", "orphan", "leftover"] as const)
    .map((state) => ({ ...MACHINE, state }));
  const painted = listTable(machines, (colour, text) => `<${colour}>${text}</>`);
  assert.equal(painted.replaceAll(/<[^>]*>/g, ""), listTable(machines));
  assert.deepEqual(
    painted.match(/<\w+>\w+(?=<\/>)/g),
    ["<green>ready", "<yellow>starting", "<red>orphan", "<red>leftover"],
  );
});

Deno.test("the table tells how long a machine is kept yet", () => {
  const table = listTable([{ ...MACHINE, state: "kept", keptUntil: SOON }]);
  assert.match(table, / kept 2 h more +192/);
});

Deno.test("what a terminal would act on is shown as what it is", () => {
  const table = listTable([{ ...MACHINE, project: "a\x1b[31m\nb\u202e" }]);
  assert.equal(table.split("\n").length, 2);
  assert.match(table, /a\\u001b\[31m\\nb\\u202e/);
});
