// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { DATA_BYTES, type FloodKind, FLOODS } from "../fakes/flood.ts";
import { peakOf, peakOfMaster, takenAfter } from "../fakes/flooded.ts";

/** Deno's own 60, and what V8 lets lie before it looks for garbage. */
const MOST_MIB = 150;

Deno.test("whatever a hostile SSH server sends, its client holds little of it", async () => {
  const holdsLittle = async (kind: FloodKind): Promise<void> => {
    const peak = await peakOf({ kind });
    assert(peak < MOST_MIB, `${kind}: ${peak} MiB`);
  };
  await Promise.all((Object.keys(FLOODS) as FloodKind[]).map(holdsLittle));
});

Deno.test("whatever a hostile SSH server sends, a connection master holds little of it", async () => {
  const holdsLittle = async (kind: FloodKind): Promise<void> => {
    const peak = await peakOfMaster({ kind });
    assert(peak < MOST_MIB, `${kind}: ${peak} MiB`);
  };
  await Promise.all((Object.keys(FLOODS) as FloodKind[]).map(holdsLittle));
});

Deno.test("what comes beyond the window arrives as slowly as it is taken, and whole", async () => {
  const end = await takenAfter(1500, { kind: "data", count: 1000, ends: true });
  assert.deepEqual(end, { status: 0, signal: null, taken: 1000 * DATA_BYTES });
});
