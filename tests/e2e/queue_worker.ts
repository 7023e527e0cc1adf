// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * A process of its own that waits in the queue as prepare does, again and again, and holds each place for
 * a moment instead of starting a machine. The arguments: its name, how often, how many machines may run,
 * and the file that gets a line for each place that it gets and leaves, from many at once.
 */
import { Connection } from "../../src/libvirt/connection.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { waitForAdmission } from "../../src/machine/queue/admission.ts";
import { entriesIn } from "../../src/machine/queue/queue.ts";
import { DEFAULT_CONFIG } from "../../src/settings/settings.ts";
import { sleep } from "../../src/wait.ts";
import { TESTBED } from "./bed.ts";
import { merged } from "../fakes/merged.ts";
import { bareStage } from "../fakes/test_stage.ts";

const [name = "", rounds, maxMachines, file = ""] = Deno.args;
const config = merged(DEFAULT_CONFIG, {
  pools: { overlays: TESTBED.overlayPool },
  host: { maxMachines: Number(maxMachines), overcommitMemory: true, reserveDiskGib: 0 },
});
{
  await using connection = await Connection.open(config.libvirt.uri);
  using pool = await StoragePool.lookup(connection, config.pools.overlays);
  const stage = bareStage(connection, { config });
  for (let round = 1; round <= Number(rounds); round++) {
    const machine = `${name}-${round}`;
    const place = await waitForAdmission(machine, { pool, memoryMib: 1 }, stage);
    const entry = entriesIn(await pool.volumeNames()).find((entry) => entry.machine === machine);
    if (entry === undefined) throw new Error("there is no limit");
    tell(`gets ${entry.number}`);
    await sleep(20 + Math.random() * 60);
    tell("ends");
    await place.leave();
  }
}
Deno.exit(); // as main.ts ends, see there

function tell(what: string): void {
  Deno.writeTextFileSync(file, `${Deno.pid} ${what}\n`, { append: true });
}
