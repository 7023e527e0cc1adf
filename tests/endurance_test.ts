// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { Connection } from "../src/libvirt/connection.ts";
import { ADDRESS_SOURCE, Domain } from "../src/libvirt/domain.ts";
import { StoragePool } from "../src/libvirt/storage_pool.ts";
import { prepare } from "../src/machine/prepare_machine.ts";
import { removeMachine } from "../src/machine/remove.ts";
import { run } from "../src/machine/run_script.ts";
import { sleep } from "../src/wait.ts";
import { TestGuest } from "./fakes/test_guest.ts";
import { openTestHost } from "./fakes/test_host.ts";
import { JOB, script, testStage } from "./fakes/test_stage.ts";

/** V8's own collector, see the task "test" in deno.json. */
function collectGarbage(): void {
  const { gc } = globalThis as { readonly gc?: () => void };
  assert(gc, "run with --v8-flags=--expose-gc");
  gc();
}

const libc = Deno.dlopen("libc.so.6", {
  mallinfo2: { parameters: [], result: { struct: Array(10).fill("usize") } }, // malloc.h
}).symbols;

/** What this process holds. */
interface Holdings {
  readonly descriptors: number;
  readonly threads: number;
  /** What JavaScript holds, and what malloc gave to libvirt and all others. */
  readonly heapBytes: number;
  readonly nativeBytes: number;
}

function holdings(): Holdings {
  collectGarbage();
  const mallinfo = new BigUint64Array(libc.mallinfo2().buffer);
  const [, , , , mapped = 0n, , , inUse = 0n] = mallinfo;
  return {
    descriptors: [...Deno.readDirSync("/proc/self/fd")].length,
    threads: [...Deno.readDirSync("/proc/self/task")].length,
    heapBytes: Deno.memoryUsage().heapUsed,
    nativeBytes: Number(mapped + inUse),
  };
}

/** What caches, the pools of further threads and split memory may grow by, in all and in each job. */
const SLACK_BYTES = 1024 * 1024;
const BYTES_PER_JOB = 8192;
/** The threads of Deno's pool end when they had nothing to do for ten seconds. */
const SETTLE_MS = 15_000;

/** Sees that these jobs left nothing, as soon as the last sockets and threads are gone. */
async function assertNothingLeft(before: Holdings, jobs: number): Promise<void> {
  const end = performance.now() + SETTLE_MS;
  const slackBytes = SLACK_BYTES + jobs * BYTES_PER_JOB;
  for (;;) {
    const now = holdings();
    try {
      assert(now.descriptors <= before.descriptors, "descriptors");
      assert(now.threads <= before.threads + 8, "threads"); // of that pool
      assert(now.heapBytes <= before.heapBytes + slackBytes, "memory of JavaScript");
      assert(now.nativeBytes <= before.nativeBytes + slackBytes, "memory of libraries");
      return;
    } catch (error) {
      if (performance.now() < end) await sleep(100);
      else {throw new Error(`something is left: ${JSON.stringify({ before, now })}`, {
          cause: error,
        });}
    }
  }
}

Deno.test("what libvirt gives to read is given back: strings, lists and errors", async () => {
  await using connection = await openTestHost();
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  using domain = await Domain.create(connection, "with-a-card", WITH_A_CARD, 0);
  const readAll = async (times: number): Promise<void> => {
    for (let i = 0; i < times; i++) {
      await pool.xml();
      await pool.volumeNames();
      assert.equal(await pool.findVolume("none"), null);
      assert.equal((await domain.interfaceAddresses(ADDRESS_SOURCE.LEASE)).length, 1);
    }
  };
  await readAll(200);
  const before = holdings();
  await readAll(8000);
  const end = performance.now() + SETTLE_MS;
  for (;;) {
    // V8 frees what it allocated for buffers some time after its collection, and keeps some.
    const growth = holdings().nativeBytes - before.nativeBytes;
    if (growth < 8000 * 80) break;
    assert(performance.now() < end, `it grew by ${growth} bytes, 80 or more each time`);
    await sleep(100);
  }
  await domain.destroy();
});

const WITH_A_CARD = `<domain type="test"><name>with-a-card</name><memory>65536</memory>
  <os><type>hvm</type></os>
  <devices><interface type="network"><source network="default"/></interface></devices></domain>`;

async function runJob(connection: Connection, machine: string, guest: TestGuest): Promise<void> {
  using stage = testStage(connection, guest);
  await prepare({ ...JOB, machine }, {}, stage);
  await run(machine, script("echo done"), stage);
  await removeMachine(machine, stage);
  assert.equal(stage.output.stdout, "done\n");
}

async function runInARow(guest: TestGuest, jobs: number): Promise<void> {
  for (let i = 0; i < jobs; i++) {
    const connection = await openTestHost();
    await runJob(connection, JOB.machine, guest);
    assert.equal(await connection.close(), 0, "a handle is left");
    guest.forget();
  }
}

Deno.test("120 jobs in a row leave no handle, descriptor, thread or memory", async () => {
  await using guest = await TestGuest.start();
  await runInARow(guest, 30); // until all modules and pools are there
  const before = holdings();
  await runInARow(guest, 90);
  await assertNothingLeft(before, 90);
});

async function runAtOnce(connection: Connection, guest: TestGuest): Promise<void> {
  const machines = Array.from({ length: 20 }, (_, i) => `${JOB.machine}-${i}`);
  await Promise.all(machines.map((machine) => runJob(connection, machine, guest)));
  guest.forget();
}

Deno.test("20 jobs at once leave nothing, each with a machine of its own", async () => {
  const connection = await openTestHost();
  {
    await using guest = await TestGuest.start();
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    await runAtOnce(connection, guest);
    const before = holdings();
    for (let i = 0; i < 3; i++) await runAtOnce(connection, guest);
    await assertNothingLeft(before, 60);
    assert.deepEqual(await pool.volumeNames(), ["somebody.qcow2"]);
    using domains = await Domain.listAll(connection);
    assert.deepEqual(domains.map(({ name }) => name), ["somebody"]);
  }
  assert.equal(await connection.close(), 0, "a handle is left");
});
