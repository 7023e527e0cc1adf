// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { e2eTest } from "./bed.ts";
import { DATA_BYTES, type FloodKind, FLOODS } from "../fakes/flood.ts";
import { peakOf, takenAfter } from "../fakes/flooded.ts";

const SECONDS = 30;
/** Honest output at full speed takes 150: V8 lets so much lie before it looks for garbage. */
const MOST_MIB = 200;
/** Longer than keepalives may be unanswered. */
const STILL_MS = 150_000;

e2eTest("half a minute of what a hostile SSH server sends takes less than 200 MiB", async (t) => {
  for (const kind of Object.keys(FLOODS) as FloodKind[]) {
    await t.step(kind, async () => {
      const peak = await peakOf({ kind, seconds: SECONDS });
      assert(peak < MOST_MIB, `${peak} MiB`);
    });
  }
}, { thorough: true });

e2eTest("a log that stands still for minutes loses no guest, whatever it sent", async () => {
  const end = await takenAfter(STILL_MS, { kind: "data", count: 1000, ends: true });
  assert.deepEqual(end, { status: 0, signal: null, taken: 1000 * DATA_BYTES });
}, { thorough: true });
