// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { DOMAIN_TYPE, TESTBED, virsh } from "../bed.ts";
import type { Point } from "./killed_program.ts";
import { addRow, Attempt, type Fault, faultTest, messageOf, wrongIn } from "./matrix.ts";
import { allPointsOf, cancel, inWords, kill } from "./points.ts";
import { done, list, untilNobodyFills, waiting, withStandbys } from "../standby_bed.ts";

/** Prepare's first volume is the one that claims the job's name. */
function isFirstOfTakeover({ name, count, when }: Point): boolean {
  return name === "virStorageVolCreateXML" && count === 2 && when === "sent";
}

/** What is there besides the warm image and machines that wait. */
async function leftBehind(file: string): Promise<string[]> {
  const waits = await waiting(file);
  const machines = (await list(file)).filter(({ state }) => state !== "standby")
    .map(({ machine, state }) => `${machine} (${state})`);
  const volumes = (await virsh("vol-list", TESTBED.overlayPool)).split("\n")
    .map((line) => line.trim().split(/\s/)[0] ?? "")
    .filter((name) => / |\.assigned\./.test(name) || name.startsWith("standby-"))
    .filter((name) => !waits.some((machine) => name.startsWith(`${machine}.`)));
  return [...machines, ...volumes];
}

faultTest("prepare is killed or cancelled while it takes over a machine that waits", async (t) => {
  await withStandbys(1, async (settings, file) => {
    const others = await leftBehind(file); // of the bystanders
    const addRowFor = async (
      fault: Fault,
      call: (attempt: Attempt) => ReturnType<Attempt["prepare"]>,
    ): Promise<void> => {
      await done(file, ["standby"]);
      using attempt = await Attempt.begin({ settings: { domain_type: DOMAIN_TYPE, ...settings } });
      const met = await call(attempt);
      const wrong = wrongIn(met, fault);
      if (fault.then === "cleanup") assert.equal((await attempt.cleanup()).status, 0);
      await untilNobodyFills();
      await attempt.end();
      await attempt.age();
      await done(file, ["gc"]);
      const left = (await leftBehind(file)).filter((it) => !others.includes(it));
      if (left.length > 0) wrong.push(`left: ${left.join(", ")}`);
      const cells = { left: left.join(", ") || "nothing", message: messageOf(met), wrong };
      addRow(fault, met, cells);
    };

    let points: Point[] = [];
    await addRowFor(
      {
        fault: "none",
        stage: "prepare",
        status: 0,
        says: /Using the standby machine/,
        then: "cleanup",
      },
      async (attempt) => {
        const met = await attempt.prepare({ debug: true });
        const all = allPointsOf(met).filter(({ name }) => !/^virDomainFree|Close$/.test(name));
        points = all.slice(all.findIndex(isFirstOfTakeover));
        return met;
      },
    );
    assert(points.length > 12, `only ${points.length} points`);
    for (const [i, point] of points.entries()) {
      const isKill = point.when === "sent" || i % 2 === 0;
      const fault: Fault = {
        fault: `${isKill ? "SIGKILL" : "SIGTERM"} ${inWords(point)}, at a takeover`,
        stage: "prepare",
        status: isKill ? null : 2,
        says: isKill ? /(?:)/ : /cancelled the stage/,
        then: i % 4 < 2 ? "cleanup" : "gc",
      };
      await t.step(
        fault.fault,
        () => addRowFor(fault, (attempt) => attempt.prepare(isKill ? kill(point) : cancel(point))),
      );
    }
  });
});
