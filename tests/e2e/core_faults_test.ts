// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * The dozen faults that matter most, as `.ci/run` has them; `faults_test.ts` has them all. Where a
 * machine outlives its fault, the next one meets the same machine.
 */
import assert from "node:assert/strict";
import { type Called, command } from "./bed.ts";
import { meetDeadBindings } from "./faults/dead_binding.ts";
import {
  addRow,
  type Attempt,
  type Fault,
  faultTest,
  isFaultIgnored,
  meetFault,
  messageOf,
  table,
  wrongIn,
} from "./faults/matrix.ts";
import { BOOTING, cancel, kill, SCRIPT_RUNS } from "./faults/points.ts";
import { NAME, startPool } from "./faults/pool.ts";
import { killDaemonAt, killQemuAt, untilLibvirtAnswers } from "./faults/strikes.ts";

const KILLED = { status: null, says: /(?:)/ } as const;

faultTest("prepare meets a fault", async (t) => {
  const rows: readonly {
    readonly row: Omit<Fault, "stage">;
    readonly meet: (attempt: Attempt) => Promise<Called>;
  }[] = [
    {
      row: { fault: "SIGKILL after the overlay is made", ...KILLED, then: "gc" },
      meet: (it) => it.prepare(kill({ name: "virStorageVolCreateXML", count: 2, when: "done" })),
    },
    {
      row: { fault: "SIGKILL in virDomainCreateXML", ...KILLED, then: "cleanup" },
      meet: (it) => it.prepare(kill({ name: "virDomainCreateXML", count: 1, when: "midway" })),
    },
    {
      row: {
        fault: "SIGTERM while the guest boots",
        status: 2,
        says: /GitLab Runner cancelled the stage/,
        then: "nothing",
      },
      meet: (it) => it.prepare(cancel(BOOTING)),
    },
    {
      row: {
        fault: "libvirtd killed in virDomainCreateXML",
        status: 2,
        says: /libvirt: .*/,
        then: "cleanup",
      },
      meet: async (it) => {
        const point = { name: "virDomainCreateXML", count: 1, when: "midway" } as const;
        const met = await it.prepare({ strike: killDaemonAt(point) });
        await untilLibvirtAnswers();
        return met;
      },
    },
    {
      row: {
        fault: "QEMU killed while the guest boots",
        status: 2,
        says: /ended/,
        then: "nothing",
      },
      meet: (it) => it.prepare({ strike: killQemuAt(BOOTING, it) }),
    },
  ];
  for (const { row, meet } of rows) {
    await t.step(row.fault, () => meetFault(row.fault, { ...row, stage: "prepare" }, meet));
  }
  await t.step("QEMU is killed while libvirt sets the filter", meetDeadBindings);
  await t.step("overlay pool full", async () => {
    await using pool = await startPool("1M");
    await command(["dd", "if=/dev/zero", `of=${pool.path}/theirs`, "bs=4k"]);
    await meetFault(
      "overlay pool full",
      { stage: "prepare", status: 2, says: /No space left on device|room|free/, then: "nothing" },
      (attempt) => attempt.prepare(),
      { settings: { pools: { overlays: NAME }, host: { queue_seconds: 3 } } },
    );
  });
}, { core: true });

/** Adds the row of a fault that the machine outlives. */
function survived(row: Omit<Fault, "stage" | "then">, met: Called): void {
  const fault = { ...row, stage: "run", then: "nothing" } as const;
  addRow(fault, met, {
    message: messageOf(met),
    left: "its machine",
    wrong: wrongIn(met, fault),
  });
}

faultTest("run meets faults, one after the other in the same machine", async () => {
  await meetFault(
    "QEMU killed while the script runs",
    { stage: "run", status: 2, says: /ended: it powered off/, then: "cleanup" },
    async (attempt) => {
      await attempt.mustPrepare();
      const long = "sleep 60";
      const killed = await attempt.run(long, kill(SCRIPT_RUNS));
      survived({ fault: "SIGKILL while the script runs", ...KILLED }, killed);
      const cancelled = await attempt.run(long, cancel(SCRIPT_RUNS));
      const says = /GitLab Runner cancelled the stage/;
      survived({ fault: "SIGTERM while the script runs", status: 2, says }, cancelled);
      const goesOn = await attempt.run("sleep 8; echo end", { strike: killDaemonAt(SCRIPT_RUNS) });
      survived({ fault: "libvirtd killed while it runs", status: 0, says: /^end$/m }, goesOn);
      await untilLibvirtAnswers();
      return await attempt.run(long, { strike: killQemuAt(SCRIPT_RUNS, attempt) });
    },
  );
}, { core: true });

faultTest("cleanup meets faults, one after the other", async () => {
  const point = { name: "virDomainDestroy", count: 1, when: "midway" } as const;
  await meetFault(
    "SIGKILL in virDomainDestroy",
    { stage: "cleanup", ...KILLED, then: "gc" },
    async (attempt) => {
      assert.equal((await attempt.prepare(kill(BOOTING))).status, 128 + 9);
      return await attempt.cleanup(kill(point));
    },
  );
  await meetFault(
    "libvirtd killed in virDomainDestroy",
    { stage: "cleanup", status: 0, says: /Removed/, then: "nothing" },
    async (attempt) => {
      assert.equal((await attempt.prepare(kill(BOOTING))).status, 128 + 9);
      const met = await attempt.cleanup({ strike: killDaemonAt(point) });
      await untilLibvirtAnswers();
      return met;
    },
  );
}, { core: true });

if (!isFaultIgnored) Deno.test.afterAll(() => console.log(table()));
