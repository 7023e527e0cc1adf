// SPDX-License-Identifier: GPL-2.0-or-later
//
// Waits for turns as prepare does, again and again, and holds each for a moment instead of starting a
// machine: turn_taker.ts NAME ROUNDS MAX_MACHINES FILE. The file gets a line for each that it gets
// and gives back, from many at once.
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { leaveQueue } from "../../src/machine/queue/queue_entry.ts";
import { DEFAULT_CONFIG } from "../../src/settings/load.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { waitForRoom } from "../../src/machine/queue/admission.ts";
import { sleep } from "../../src/wait.ts";
import { TESTBED } from "./bed.ts";

const DIRECTORIES = { keyDirectory: "/nonexistent", lastingKeyDirectory: "/nonexistent" };
const [name = "", rounds, maxMachines, file = ""] = Deno.args;
const config = {
  ...{ ...DEFAULT_CONFIG, overlayPool: TESTBED.overlayPool, maxMachines: Number(maxMachines) },
  ...{ overcommitMemory: true, reserveDiskGib: 0 },
};
{
  await using connection = await Connection.open(config.uri);
  using pool = await StoragePool.lookup(connection, config.overlayPool);
  const signal = new AbortController().signal;
  for (let round = 1; round <= Number(rounds); round++) {
    const quiet = { log: () => {}, warn: () => {}, progress: null };
    const stage = { connection, config, signal, ...quiet, ...DIRECTORIES };
    const { turn } = await waitForRoom(`${name}-${round}`, { pool, memoryMib: 1 }, stage);
    if (turn === null) throw new Error("there is no limit");
    tell(`gets ${turn.number}`);
    await sleep(20 + Math.random() * 60);
    tell("ends");
    await leaveQueue(pool, turn);
  }
}
Deno.exit(); // as main.ts ends, see there

function tell(what: string): void {
  Deno.writeTextFileSync(file, `${Deno.pid} ${what}\n`, { append: true });
}
