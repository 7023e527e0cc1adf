// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { durationSeconds, durationText, moment, secondsSince } from "../src/duration.ts";

Deno.test("durations are said as people say them", () => {
  assert.deepEqual(
    [1, 90, 7200, 3 * 86400].map(durationText),
    ["1 s", "2 min", "2 h", "3 d"],
  );
});

Deno.test("durations are read in seconds, minutes, hours and days", () => {
  assert.deepEqual(["5s", "90m", "2h", "7d"].map(durationSeconds), [5, 5400, 7200, 604_800]);
});

Deno.test("a time is said to the minute, and known in both forms", () => {
  const time = Date.UTC(2026, 0, 31, 14, 5, 59);
  assert.equal(moment(time), "2026-01-31 14:05 UTC");
  const written = new Date(Date.now() - 60_000).toISOString();
  for (const since of [written, Date.parse(written)]) {
    assert(Math.abs(secondsSince(since) - 60) < 5);
  }
});
