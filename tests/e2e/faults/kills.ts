// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { Called } from "../bed.ts";
import type { Point } from "./killed_program.ts";
import {
  addRow,
  Attempt,
  type AttemptOptions,
  type CallOptions,
  faultTest,
  meetFault,
  messageOf,
  wrongIn,
} from "./matrix.ts";
import { allPointsOf, BOOTING, cancel, inWords, isOfWait, kill, pointsOf } from "./points.ts";

/** Machines of this template get a seed and a key, and are never ready in these tests. */
const SEEDED: AttemptOptions = { template: "cloud" };

/** What the program prints of its calls up to this point. */
async function traceOf(
  call: (attempt: Attempt, options: CallOptions) => Promise<Called>,
  options: AttemptOptions,
): Promise<Called> {
  using attempt = await Attempt.begin(options);
  const called = await call(attempt, { debug: true });
  const { status, stderr } = await attempt.cleanup();
  assert.equal(status, 0, stderr);
  await attempt.end();
  return called;
}

/** The points of prepare until the guest boots, with a seed and a key, and then until it is ready. */
async function pointsOfPrepare(): Promise<{ point: Point; options: AttemptOptions }[]> {
  const whole = await traceOf((it, options) => it.prepare(options), {});
  assert.equal(whole.status, 0, whole.stderr);
  // After the other: that one may have needed an address which the network now keeps for all.
  const { strike } = kill(BOOTING);
  const early = await traceOf((it, options) => it.prepare({ ...options, strike }), SEEDED);
  const all = allPointsOf(whole);
  const late = all.slice(all.findLastIndex(isOfWait) + 1); // how often it is asked differs
  assert(late.some(({ name }) => name === "virDomainSetMetadata"), "the last points are not there");
  return [
    ...allPointsOf(early).map((point) => ({ point, options: SEEDED })),
    ...late.map((point) => ({ point, options: {} })),
  ];
}

const KILLED = { status: null, says: /(?:)/ } as const;
const CANCELLED = { status: 2, says: /GitLab Runner cancelled the stage/ } as const;

faultTest("prepare is killed or cancelled at each call of libvirt", async (t) => {
  const points = await pointsOfPrepare();
  assert(points.length > 40, `only ${points.length} points`);
  const stage = "prepare";
  for (const [i, { point, options }] of points.entries()) {
    const fault = `SIGKILL ${inWords(point)}`;
    const then = i % 2 === 0 ? "gc" : "cleanup";
    await t.step(fault, () =>
      meetFault(
        fault,
        { stage, ...KILLED, then },
        (attempt) => attempt.prepare(kill(point)),
        options,
      ));
  }
  for (const { point, options } of points.filter(({ point }) => point.when !== "sent")) {
    const fault = `SIGTERM ${inWords(point)}`;
    const isOver = point.name === "virConnectClose" && options !== SEEDED;
    await t.step(fault, () =>
      meetFault(
        fault,
        isOver
          ? { stage, status: 0, says: /is ready/, then: "cleanup" }
          : { stage, ...CANCELLED, then: "nothing" },
        (attempt) => attempt.prepare(cancel(point)),
        options,
      ));
  }
});

faultTest("run is killed or cancelled at each call of libvirt", async (t) => {
  using attempt = await Attempt.begin();
  await attempt.mustPrepare();
  const script = "sleep 3"; // until it is looked whether the machine is still there
  const points = pointsOf(await attempt.run(script, { debug: true }));
  const stage = "run";
  const left = "its machine";
  for (const point of points) {
    const fault = `SIGKILL ${inWords(point)}`;
    await t.step(fault, async () => {
      const met = await attempt.run(script, kill(point));
      const again = await attempt.run("exit 3");
      const wrong = wrongIn(again, { status: 1, says: /(?:)/ });
      const row = { fault, stage, ...KILLED, then: "cleanup" } as const;
      addRow(row, met, {
        message: "the next script runs",
        left,
        wrong: [...wrongIn(met, row), ...wrong],
      });
    });
  }
  for (const point of points) {
    const fault = `SIGTERM ${inWords(point)}`;
    await t.step(fault, async () => {
      const met = await attempt.run(script, cancel(point));
      const isOver = point.name === "virConnectClose";
      const end = isOver ? { status: 0, says: /(?:)/ } as const : CANCELLED;
      const row = { fault, stage, ...end, then: "cleanup" } as const;
      addRow(row, met, { message: messageOf(met), left, wrong: wrongIn(met, row) });
    });
  }
  assert.equal((await attempt.cleanup()).status, 0);
  await attempt.end();
});

faultTest("cleanup is killed or cancelled at each call of libvirt", async (t) => {
  const prepared = async (attempt: Attempt): Promise<void> => {
    const { status, stderr } = await attempt.prepare(kill(BOOTING));
    assert.equal(status, 137, stderr);
  };
  const trace = await traceOf(async (it, options) => {
    await prepared(it);
    return await it.cleanup(options);
  }, SEEDED);
  assert.equal(trace.status, 0, trace.stderr);
  const stage = "cleanup";
  const kills = allPointsOf(trace).map((point, i) => ({
    row: { fault: `SIGKILL ${inWords(point)}`, ...KILLED, then: i % 2 === 0 ? "gc" : "cleanup" },
    options: kill(point),
  } as const));
  const cancels = pointsOf(trace).map((point) => ({
    row: { fault: `SIGTERM ${inWords(point)}`, status: 0, says: /Removed/, then: "nothing" },
    options: cancel(point),
  } as const));
  await inLanes([...kills, ...cancels], async ({ row, options }) => {
    await t.step({
      name: row.fault,
      fn: () =>
        meetFault(row.fault, { ...row, stage }, async (it) => {
          await prepared(it);
          return await it.cleanup(options);
        }, { ...SEEDED, isBesideOthers: true }),
      sanitizeOps: false, // or no two at once
      sanitizeResources: false,
      sanitizeExit: false,
    });
  });
});

const LANES = 3;

/** Does this to all items, some at once. */
async function inLanes<T>(items: readonly T[], act: (item: T) => Promise<void>): Promise<void> {
  const queue = [...items];
  await Promise.all(Array.from({ length: LANES }, async () => {
    for (let item; (item = queue.shift()) !== undefined;) await act(item);
  }));
}
