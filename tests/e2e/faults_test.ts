// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * What becomes of a job when something fails: a row for each fault, in a table at the end. The tests
 * are in `faults/`.
 */
import { Bystanders } from "./faults/bystanders.ts";
import "./faults/daemon.ts";
import "./faults/guest.ts";
import "./faults/host.ts";
import "./faults/kills.ts";
import { isMatrixIgnored, table } from "./faults/matrix.ts";
import "./faults/rivals.ts";
import "./faults/standby.ts";

let bystanders: Bystanders | undefined;

if (!isMatrixIgnored) {
  Deno.test.beforeAll(async () => {
    bystanders = await Bystanders.begin();
  });
  Deno.test.afterAll(async () => {
    console.log(table());
    if (bystanders === undefined) return; // why is said above
    await bystanders.end();
    console.log(
      "the job beside them has passed; somebody's domain, volume and filter are untouched",
    );
  });
}
