// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * A process of its own that counts some runs, for tests/metrics/metrics_test.ts. The arguments: the file, and
 * how many.
 */
import type { Observation } from "../../src/metrics/metrics.ts";
import { addToMetricsFile } from "../../src/metrics/metrics_file.ts";

/** A run that succeeded. */
export const RUN: Observation = {
  version: "1.2.3",
  stage: "run",
  result: "success",
  fault: null,
  phases: [],
  gauges: null,
};

if (import.meta.main) {
  const [file = "", count] = Deno.args;
  for (let i = 0; i < Number(count); i++) {
    await addToMetricsFile(file, RUN, { warn: console.error, patienceMs: 60_000 });
    console.log(i + 1); // which is in the file by now
  }
}
