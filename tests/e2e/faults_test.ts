// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * What becomes of a job when something fails. At the end it prints a table with a row for each fault: the
 * stage that meets it, its exit status, whose fault that is, what is left, and the message. The tests are
 * in `faults/`; `tests/faults_test.ts` does the same for each call of libvirt, on its test driver.
 *
 * Each row runs a stage of a job with its fault, and then the runner's cleanup, or only gc after the runner
 * and the attempt's directory are gone. Nothing of ours may be left. Beside all rows, a job runs, and a
 * domain, a volume and a network filter that are not ours must stay as they were. The points at which a stage
 * is killed come from what an undisturbed stage calls, so new calls of libvirt get rows by themselves.
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
