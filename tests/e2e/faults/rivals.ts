// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { sleep } from "../../../src/wait.ts";
import { type Called, command, until, virsh } from "../bed.ts";
import { faultTest, meetFault } from "./matrix.ts";
import { BOOTING, kill } from "./points.ts";
import { killDaemon, untilLibvirtAnswers } from "./strikes.ts";

faultTest("stages of one job come at once", async (t) => {
  await t.step("two prepares", () =>
    meetFault(
      "two prepares for one job",
      { stage: "prepare", status: 2, says: /There is a .* already/, then: "cleanup" },
      async (attempt) => {
        const ends = await Promise.all([attempt.prepare(), attempt.prepare()]);
        ends.sort((a, b) => a.status - b.status);
        const [winner, loser] = ends as [Called, Called];
        assert.equal(winner.status, 0, winner.stderr);
        assert.equal((await attempt.run("true")).status, 0, "the loser removed the machine");
        return loser;
      },
    ));
  await t.step("cleanup beside run", () =>
    meetFault(
      "cleanup in parallel",
      { stage: "run", status: 2, says: /ended: it powered off|broke/, then: "nothing" },
      async (attempt) => {
        await attempt.mustPrepare();
        const running = attempt.run("sleep 60");
        await sleep(2000);
        assert.equal((await attempt.cleanup()).status, 0);
        return await running;
      },
    ));
  await t.step("cleanup beside prepare", () =>
    meetFault(
      "cleanup in parallel",
      { stage: "prepare", status: 2, says: /ended|Cannot start/, then: "cleanup" },
      async (attempt) => {
        const preparing = attempt.prepare();
        await until(async () => (await virsh("list", "--name")).includes(attempt.machine), {
          what: "the machine runs",
        });
        assert.equal((await attempt.cleanup()).status, 0);
        return await preparing;
      },
    ));
  await t.step("three cleanups", () =>
    meetFault(
      "three cleanups of one job",
      { stage: "cleanup", status: 0, says: /Removed|There is no machine/, then: "nothing" },
      async (attempt) => {
        await attempt.prepare(kill(BOOTING));
        const calls = [attempt.cleanup(), attempt.cleanup(), attempt.cleanup()];
        const ends = (await Promise.all(calls)).sort((a, b) => b.status - a.status);
        return ends[0] as Called;
      },
    ));
});

faultTest("the host reboots", async (t) => {
  for (const then of ["cleanup", "gc"] as const) {
    await t.step(then, () =>
      meetFault(
        `the host reboots, then ${then}`,
        { stage: "run", status: 2, says: /does not exist, or has ended/, then },
        async (attempt) => {
          await attempt.mustPrepare();
          const qemu = await Deno.readTextFile(`/run/libvirt/qemu/${attempt.machine}.pid`);
          await killDaemon();
          await command(["kill", "-KILL", qemu]);
          await untilLibvirtAnswers();
          return await attempt.run("true");
        },
      ));
  }
});
