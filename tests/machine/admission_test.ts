// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import { fileSystemSpace } from "../../ffi/proc.ts";
import { gc } from "../../src/commands/gc.ts";
import { listMachines } from "../../src/commands/list.ts";
import { SystemFailure } from "../../src/errors.ts";
import type { Job } from "../../src/job/job.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { domainMemory } from "../../src/libvirt/memory_stats.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { keepAfterJob } from "../../src/machine/kept.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { hostMark, processMark } from "../../src/machine/process.ts";
import { tryAdmission, waitForAdmission } from "../../src/machine/queue/admission.ts";
import {
  findShortage,
  type HostLoad,
  isNext,
  type QueueSettings,
} from "../../src/machine/queue/host_load.ts";
import {
  enterProject,
  enterQueue,
  entriesBefore,
  entriesIn,
  isLiveEntry,
  liveEntries,
} from "../../src/machine/queue/queue.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { machineOfVolume } from "../../src/machine/storage/volume_names.ts";
import { createRawVolume, removeVolume } from "../../src/machine/storage/volumes.ts";
import { warm } from "../../src/machine/warm/save.ts";
import { parseConfig } from "../../src/settings/read.ts";
import { sleep } from "../../src/wait.ts";
import { merged } from "../fakes/merged.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import {
  changeMetadata,
  JOB,
  type Stage,
  type TestStage,
  testStage,
  type TestStageOptions,
  toStage,
} from "../fakes/test_stage.ts";

const GIB = 1024 ** 3;

const LIMITS: QueueSettings = {
  maxMachines: null,
  overcommitMemory: false,
  reserveMemoryMib: 500,
  reserveDiskGib: 1,
};

const LOAD: HostLoad = {
  entry: { machine: "m", memoryMib: 2000 },
  ahead: [],
  running: new Set(),
  hasOthers: true,
  memory: { total: 8000, available: 6000 },
  space: { total: 100 * GIB, available: 50 * GIB },
};

/** What the machine waits for, in words; null if for nothing. */
function shortage(load: Partial<HostLoad>, limits: Partial<QueueSettings> = {}): string | null {
  const found = findShortage({ ...LOAD, ...load }, { ...LIMITS, ...limits });
  if (found === null) return null;
  const { what, ahead, figures, isHopeless } = found;
  return [isHopeless ? "never" : "wait", what, ahead, figures].filter((part) => part).join("; ");
}

function machines(count: number, memoryMib = 1000): { machine: string; memoryMib: number }[] {
  return Array.from({ length: count }, (_, i) => ({ machine: `other-${i}`, memoryMib }));
}

function names(count: number): Set<string> {
  return new Set(machines(count).map(({ machine }) => machine));
}

Deno.test("a machine starts where there is room for it and for all ahead, to the last MiB", () => {
  assert.equal(shortage({}), null);
  assert.equal(shortage({ ahead: machines(3) }), null);
  assert.equal(shortage({ ahead: machines(3, 1166) }), null);
  assert.equal(
    shortage({ ahead: machines(3, 1167) }),
    "wait; 2000 MiB of memory; 3 jobs ahead; 5500 MiB are free",
  );
  assert.equal(
    shortage({ memory: { total: 8000, available: 2499 } }),
    "wait; 2000 MiB of memory; 1999 MiB are free",
  );
});

Deno.test("promises that exceed the memory leave none, and not less than none", () => {
  const memory = { total: 8000, available: -3000 };
  assert.equal(shortage({ memory }), "wait; 2000 MiB of memory; 0 MiB are free");
});

Deno.test("a machine that runs and has not given up its turn counts once", () => {
  const load = { ahead: machines(4), running: names(4) };
  assert.equal(shortage(load), null);
  assert.equal(shortage(load, { maxMachines: 5 }), null);
});

Deno.test("host.max_machines counts those that run and those that are about to", () => {
  const load = { ahead: machines(2), running: names(1) };
  assert.equal(shortage(load, { maxMachines: 3 }), null);
  assert.equal(
    shortage(load, { maxMachines: 2 }),
    "wait; a machine to end; 1 job ahead; 1 of 2 machines run",
  );
  assert.equal(shortage({}, { maxMachines: 1 }), null);
});

Deno.test("the next to start is the first that waits, behind those that are about to", () => {
  const next = (ahead: HostLoad["ahead"], running = names(0), maxMachines = 2): boolean =>
    isNext({ ...LOAD, ahead, running }, { ...LIMITS, maxMachines });
  assert(next([]));
  assert(next(machines(2)));
  assert(!next(machines(3)));
  assert(!next(machines(1, 6000)), "the one ahead waits for memory");
  assert(next(machines(2), names(2)), "those ahead run already");
  assert(!next(machines(3), names(2)));
});

Deno.test("a machine that is larger than the host never starts", () => {
  assert.equal(
    shortage({ entry: { machine: "m", memoryMib: 7501 } }),
    "never; 7501 MiB of memory; the host has 8000 MiB, of which 500 MiB are reserved",
  );
  assert.match(shortage({ entry: { machine: "m", memoryMib: 7500 } }) ?? "", /^wait/);
});

Deno.test("what is unknown or not limited keeps no machine", () => {
  assert.equal(shortage({ memory: null, space: null, ahead: machines(100) }), null);
  assert.equal(shortage({ ahead: machines(100) }, { overcommitMemory: true }), null);
});

Deno.test("a full pool is worth a wait while a machine may give space back", () => {
  const space = { total: 100 * GIB, available: 0.5 * GIB };
  assert.match(
    shortage({ space }) ?? "",
    /^wait; space .*, where 1 GiB are reserved; 0\.5 of 100 GiB/,
  );
  assert.match(shortage({ space, hasOthers: false }) ?? "", /^never; .*no machine can free space/);
  assert.match(shortage({ space }, { reserveDiskGib: 101 }) ?? "", /^never/);
});

/** Machines that come, look around, start and end in any order. */
const STORY = fc.record({
  maxMachines: fc.option(fc.integer({ min: 1, max: 4 })),
  total: fc.integer({ min: 500, max: 5000 }),
  steps: fc.array(
    fc.oneof(
      fc.record({
        kind: fc.constant("come" as const),
        memoryMib: fc.integer({ max: 2000, min: 64 }),
      }),
      fc.record({
        kind: fc.constantFrom("look" as const, "start" as const, "end" as const, "die" as const),
        who: fc.nat(),
      }),
    ),
    { maxLength: 200 },
  ),
});

Deno.test("whatever comes and goes, machines never exceed the limits, and nobody overtakes", () => {
  fc.assert(
    fc.property(STORY, ({ maxMachines, total, steps }) => {
      const limits = { ...LIMITS, maxMachines };
      const room = total - limits.reserveMemoryMib;
      const entries: { machine: string; memoryMib: number; isAdmitted: boolean }[] = [];
      const running = new Map<string, number>();
      const sum = (numbers: Iterable<number>): number => [...numbers].reduce((a, b) => a + b, 0);
      const look = (at: number) => {
        const entry = entries[at];
        assert(entry);
        return findShortage({
          ...LOAD,
          entry,
          ahead: entries.slice(0, at),
          running: new Set(running.keys()),
          memory: { total, available: total - sum(running.values()) },
        }, limits);
      };
      const pick = <T>(from: readonly T[], who: number): T | undefined => from[who % from.length];
      for (const [i, step] of steps.entries()) {
        if (step.kind === "come") {
          const { memoryMib } = step;
          entries.push({ machine: `m${i}`, memoryMib, isAdmitted: false });
        } else if (step.kind === "end") {
          running.delete(pick([...running.keys()], step.who) ?? "");
        } else {
          const entry = pick(
            entries.filter((each) => each.isAdmitted === (step.kind === "start")),
            step.who,
          );
          if (entry === undefined) continue;
          const at = entries.indexOf(entry);
          if (step.kind === "look" && look(at) === null) {
            for (let j = 0; j < at; j++) assert.equal(look(j), null, "it overtakes");
            entry.isAdmitted = true;
          }
          if (step.kind === "start") running.set(entry.machine, entry.memoryMib);
          if (step.kind !== "look") entries.splice(at, 1);
        }
        const starting = entries.filter(({ isAdmitted }) => isAdmitted);
        assert(running.size + starting.length <= (maxMachines ?? Infinity), "too many machines");
        const promised = sum(running.values()) + sum(starting.map(({ memoryMib }) => memoryMib));
        assert(promised <= Math.max(0, room), "too much memory");
      }
    }),
    { numRuns: 500 },
  );
});

Deno.test("the space of a file system is known where it is, and nowhere else", async () => {
  const here = fileSystemSpace("/");
  const { stdout } = await new Deno.Command("df", {
    args: ["--block-size=1", "--output=size,avail", "/"],
  }).output();
  const [, , size, available] = new TextDecoder().decode(stdout).trim().split(/\s+/).slice(-4);
  assert.equal(here?.total, Number(size));
  assert(Math.abs((here?.available ?? 0) - Number(available)) < 2 * GIB); // others write meanwhile
  assert.equal(fileSystemSpace("/nonexistent"), null);
});

// --- Entries -------------------------------------------------------------------------------------

const QUEUE_LIMITS = { longestSeconds: 60, signal: new AbortController().signal, memoryMib: 1 };

/** Gives the test a host and its pool, and sees that no handle and no volume is left. */
async function withPool(test: (pool: StoragePool) => Promise<void>): Promise<void> {
  const connection = await openTestHost();
  {
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    await test(pool);
    assert.deepEqual(await pool.volumeNames(), ["somebody.qcow2"]);
  }
  assert.equal(await connection.close(), 0, "a handle is left");
}

async function makeVolume(pool: StoragePool, name: string): Promise<void> {
  using _ = await createRawVolume(pool, name, 0);
}

async function deleteEntries(pool: StoragePool): Promise<void> {
  for (const name of await pool.volumeNames()) {
    if (entriesIn([name]).length > 0) await removeVolume(pool, name);
  }
}

/** The name of an entry, by default one of another host that came just now. */
function entryName(
  machine: string,
  { number = Date.now(), process = "4711-1234-0123abcd", host = "0123456789abcdef" } = {},
): string {
  return `${machine}.${number}-2048-${process}-${host}.queue.libvirt-gci`;
}

/** The process of an entry whose prepare was killed. */
async function deadProcess(): Promise<string> {
  const child = new Deno.Command("sleep", { args: ["100"] }).spawn();
  const [pid, start, boot] = processMark(child.pid)?.split(" ") ?? [];
  child.kill("SIGKILL");
  await child.status;
  return `${pid}-${start}-${boot?.slice(0, 8)}`;
}

Deno.test("a queue entry's name tells its machine, whatever that is called, and the rest", () => {
  for (const machine of ["m", "m.17-1-1-1-0123abcd-", "m.12ab", "m.queue.libvirt-gci", "a.b-c_d"]) {
    const volume = entryName(machine, { number: 17 });
    assert.equal(machineOfVolume(volume), machine);
    assert.deepEqual(entriesIn(["m.owner.libvirt-gci", volume, `${volume}.qcow2`]), [{
      volume,
      machine,
      number: 17,
      memoryMib: 2048,
      process: "4711-1234-0123abcd",
      host: "0123456789abcdef",
    }]);
  }
});

Deno.test("of entries that come at once, each has seen all that are before it", () =>
  withPool(async (pool) => {
    const entered = await Promise.all(
      Array.from({ length: 40 }, (_, i) => enterQueue(pool, `m${i}`, QUEUE_LIMITS)),
    );
    const order = entriesIn(entered.map(({ entry }) => entry.volume)).map(({ volume }) => volume);
    for (const { entry, volumes } of entered) {
      const before = order.slice(0, order.indexOf(entry.volume));
      assert.deepEqual(before.filter((volume) => !volumes.includes(volume)), []);
    }
    await deleteEntries(pool);
  }));

Deno.test("an entry that is there already is never behind a new one, whatever its clock says", () =>
  withPool(async (pool) => {
    const number = Date.now() + 30_000;
    await makeVolume(pool, entryName("early", { number }));
    const start = performance.now();
    const { entry } = await enterQueue(pool, "late", QUEUE_LIMITS);
    assert(entry.number > number);
    assert(performance.now() - start < 10_000, "it waited until its clock said more");
    const entries = entriesIn(await pool.volumeNames()).map(({ machine }) => machine);
    assert.deepEqual(entries, ["early", "late"]);
    await deleteEntries(pool);
  }));

Deno.test("an entry counts while its process runs, and not too long", async () => {
  const [pid, start, boot] = processMark(Deno.pid)?.split(" ") ?? [];
  const process = `${pid}-${start}-${boot?.slice(0, 8)}`;
  const host = await hostMark();
  const live = async (differences: Parameters<typeof entryName>[1]) => {
    const [entry] = entriesIn([entryName("m", differences)]);
    assert(entry);
    return await isLiveEntry(entry, { longestSeconds: 60 });
  };
  assert(await live({ process, host }));
  assert(!await live({ process: `${pid}-1-${boot?.slice(0, 8)}`, host }));
  assert(!await live({ process: `${pid}-${start}-00000000`, host }));
  assert(!await live({ process: await deadProcess(), host }));
  assert(await live({ process: await deadProcess(), host: "" }));
  assert(await live({ process: await deadProcess() })); // of another host
  for (const seconds of [-61, 61]) {
    assert(!await live({ process, host, number: Date.now() + seconds * 1000 }));
  }
});

Deno.test("the entry of a prepare that was killed counts once more, and is gone then", () =>
  withPool(async (pool) => {
    const dead = entryName("dead", { process: await deadProcess(), host: await hostMark() });
    await makeVolume(pool, dead);
    const { volumes } = await enterQueue(pool, "m", QUEUE_LIMITS);
    assert(!(await pool.volumeNames()).includes(dead));
    await makeVolume(pool, dead);
    const count = async () =>
      (await liveEntries(pool, [...volumes, dead], QUEUE_LIMITS)).map(({ machine }) => machine);
    assert.deepEqual((await count()).sort(), ["dead", "m"]);
    assert.deepEqual(await count(), ["m"]);
    await deleteEntries(pool);
  }));

Deno.test("of a project's entries that come at once, each has seen all before it in its project", () =>
  withPool(async (pool) => {
    const { signal } = QUEUE_LIMITS;
    const entered = await Promise.all(
      Array.from(
        { length: 40 },
        (_, i) => enterProject(pool, `m${i}`, { project: `p/${i % 2}`, signal }),
      ),
    );
    const volumes = await pool.volumeNames();
    for (const { entry, volumes: seen } of entered) {
      assert.equal(machineOfVolume(entry.volume), entry.machine);
      const before = entriesBefore(entry, volumes) ?? assert.fail();
      assert.deepEqual(before.filter(({ volume }) => !seen.includes(volume)), []);
      assert(before.every(({ project }) => project === entry.project));
    }
    const counts = entered.map(({ entry }) => entriesBefore(entry, volumes)?.length ?? -1);
    assert.deepEqual(counts.sort((a, b) => a - b), entered.map((_, i) => Math.floor(i / 2)));
    for (const { entry } of entered) await removeVolume(pool, entry.volume);
    assert.equal(entriesBefore(entered[0]?.entry ?? assert.fail(), await pool.volumeNames()), null);
  }));

// --- Stages --------------------------------------------------------------------------------------

interface Bed {
  readonly connection: Connection;
  readonly stage: TestStage;
}

/** Gives the test a host and a stage, and sees that no handle, machine or key is left. */
async function withBed(
  test: (bed: Bed) => Promise<void>,
  options: TestStageOptions = {},
): Promise<void> {
  const connection = await openTestHost();
  {
    await using guest = await TestGuest.start();
    using stage = testStage(connection, guest, options);
    await test({ connection, stage });
  }
  assert.deepEqual(await volumesOf(connection), ["somebody.qcow2"]);
  assert.equal(await connection.close(), 0, "a handle is left");
}

async function volumesOf(connection: Connection): Promise<string[]> {
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  return (await pool.volumeNames()).sort(); // libvirt lists them in any order
}

/** A prepare that goes on beside the test. */
interface Preparing {
  readonly machine: string;
  readonly lines: readonly string[];
  readonly done: Promise<unknown>;
  readonly abort: () => void;
  /** Resolves once it has said so. */
  readonly said: (words: RegExp) => Promise<void>;
}

function startPrepare(machine: string, stage: Stage, job: Partial<Job> = {}): Preparing {
  const lines: string[] = [];
  const controller = new AbortController();
  const done = prepare(
    { ...JOB, ...job, machine },
    {},
    toStage({
      ...stage,
      signal: controller.signal,
      log: (line: string) => void lines.push(line),
    }),
  );
  done.catch(() => {}); // the test looks at it later
  const said = async (words: RegExp): Promise<void> => {
    for (let i = 0; i < 500 && !words.test(lines.join("\n")); i++) await sleep(10);
    assert.match(lines.join("\n"), words);
  };
  return { machine, lines, done, abort: () => controller.abort(new Error("cancelled")), said };
}

const ONE = { config: { host: { maxMachines: 1 } } };

Deno.test("machines start one after another, in the order in which they came", () =>
  withBed(async ({ connection, stage }) => {
    const first = startPrepare("m-1", stage);
    await first.done;
    assert.doesNotMatch(first.lines.join("\n"), /Waiting/);
    const second = startPrepare("m-2", stage);
    await second.said(/^Waiting for a machine to end \(1 of 1 machine run\)$/m);
    const third = startPrepare("m-3", stage);
    await third.said(/^Waiting for a machine to end, 1 job ahead \(1 of 1 machine run\)$/m);
    const states = (await listMachines(stage)).map(({ machine, state }) => [machine, state]);
    assert.deepEqual(states, [["m-1", "ready"], ["m-2", "waiting"], ["m-3", "waiting"]]);
    await gc({}, toStage({ ...stage, log: assert.fail }));

    await removeMachine("m-1", stage);
    await second.done;
    assert.equal(second.lines.filter((line) => line.startsWith("Waiting")).length, 1);
    assert.doesNotMatch(third.lines.join("\n"), /Started/);
    await third.said(/^Waiting for a machine to end \(1 of 1 machine run\)$/m);
    await removeMachine("m-2", stage);
    await third.done;
    await removeMachine("m-3", stage);
    assert.deepEqual(await volumesOf(connection), ["somebody.qcow2"]);
  }, ONE));

/** As a machine's metadata is whose runner was killed, and left the attempt's directory. */
const KILLED = { attemptDir: "/", runner: "1 1 0", isRunner: true };

Deno.test("a machine whose runner was killed holds up nobody, and no more go than have to", () =>
  withBed(async ({ connection, stage }) => {
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    const all = ["m-1", "m-2", "m-3"];
    for (const machine of all) await startPrepare(machine, stage).done;
    for (const machine of ["m-2", "m-3"]) await changeMetadata(connection, machine, KILLED);
    const admission = await waitForAdmission("m-4", { pool, memoryMib: 64 }, stage);
    assert("leave" in admission && !admission.hasWaited);
    await admission.leave();
    const running = (await domainMemory(connection)).map(({ name }) => name);
    assert(running.includes("m-1"));
    assert.equal(running.filter((name) => all.includes(name)).length, 2);
    assert.deepEqual(stage.lines.at(-1), "Removed a machine no longer needed");
    for (const machine of all) await removeMachine(machine, stage);
  }, { config: { host: { maxMachines: 3, queueSeconds: 5 } } }));

Deno.test("a runner that is killed while another's job waits makes room for it", () =>
  withBed(async ({ connection, stage }) => {
    await startPrepare("m-1", stage).done;
    const second = startPrepare("m-2", stage);
    await second.said(/Waiting/);
    await changeMetadata(connection, "m-1", KILLED);
    await second.done;
    assert.match(second.lines.join("\n"), /^Removed a machine no longer needed$/m);
    await removeMachine("m-2", stage);
  }, { config: { host: { maxMachines: 1, queueSeconds: 30 } } }));

Deno.test("a template that is replaced during the wait is looked up again", () =>
  withBed(async ({ connection, stage }) => {
    await startPrepare("m-1", stage).done;
    const second = startPrepare("m-2", stage);
    await second.said(/Waiting/);
    using templates = await StoragePool.lookup(connection, "base_imgs");
    await removeVolume(templates, "debian-12.qcow2");
    {
      using _ = await createRawVolume(templates, "debian-12", 5 * GIB); // which is no qcow2 image
    }
    await removeMachine("m-1", stage);
    await second.done;
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    {
      using overlay = await pool.lookupVolume("m-2.overlay.libvirt-gci");
      assert.equal(await overlay.capacityBytes(), 5 * GIB);
    }
    await removeMachine("m-2", stage);
  }, ONE));

Deno.test("of many at once, no more run than may, and each gets its turn", () =>
  withBed(async ({ connection, stage }) => {
    let most = 0;
    const { promise: full, resolve } = Promise.withResolvers<void>();
    const jobs = Array.from({ length: 9 }, async (_, i) => {
      const { machine, done } = startPrepare(`m-${i}`, stage);
      await done;
      const domains = await domainMemory(connection);
      most = Math.max(most, domains.length - 1); // without "somebody"
      if (most === 3) resolve();
      await full; // so that none ends before as many run as may
      await removeMachine(machine, stage);
    });
    await Promise.all(jobs);
    assert.equal(most, 3);
  }, { config: { host: { maxMachines: 3 } } }));

Deno.test("a machine of somebody else is none of ours", () =>
  withBed(async ({ connection, stage }) => {
    assert.deepEqual((await domainMemory(connection)).map(({ name }) => name), ["somebody"]);
    await startPrepare("m-1", stage).done;
    await removeMachine("m-1", stage);
  }, ONE));

Deno.test("a wait that is cancelled leaves neither entry nor name", () =>
  withBed(async ({ connection, stage }) => {
    await startPrepare("m-1", stage).done;
    const before = await volumesOf(connection);
    const second = startPrepare("m-2", stage);
    await second.said(/Waiting/);
    second.abort();
    await assert.rejects(second.done, /cancelled/);
    assert.deepEqual(await volumesOf(connection), before);
    await removeMachine("m-1", stage);
  }, ONE));

Deno.test("a wait that takes too long fails, says for what, and leaves nothing", () =>
  withBed(async ({ connection, stage }) => {
    await startPrepare("m-1", stage).done;
    const before = await volumesOf(connection);
    await assert.rejects(startPrepare("m-2", stage).done, (error) => {
      assert(error instanceof SystemFailure);
      const wait = /did not leave the queue within 0 s: it waits for a machine to end \(1 of 1 /;
      assert.match(error.message, wait);
      assert.match(error.advice ?? "", /libvirt-gci list; raise "host\.max_machines"/);
      return true;
    });
    assert.deepEqual(await volumesOf(connection), before);
    await removeMachine("m-1", stage);
  }, { config: { host: { maxMachines: 1, queueSeconds: 0 } } }));

Deno.test("a prepare that was killed while it waited holds nobody up", () =>
  withBed(async ({ connection, stage }) => {
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    await makeVolume(
      pool,
      entryName("dead", { process: await deadProcess(), host: await hostMark() }),
    );
    const start = performance.now();
    await startPrepare("m-1", stage).done;
    assert(performance.now() - start < 2000);
    await removeMachine("m-1", stage);
    await removeMachine("dead", stage);
  }, ONE));

Deno.test("a machine that is ahead and lives holds up, though it has nothing but its entry", () =>
  withBed(async ({ connection, stage }) => {
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    await makeVolume(pool, "ahead.owner.libvirt-gci"); // without an owner, it would be swept away
    const ahead = entryName("ahead");
    await makeVolume(pool, ahead);
    const behind = startPrepare("m-1", stage);
    await behind.said(/Waiting for a machine to end, 1 job ahead \(0 of 1 machine run\)/);
    await removeVolume(pool, ahead);
    await behind.done;
    await removeMachine("m-1", stage);
    await removeMachine("ahead", stage);
  }, ONE));

Deno.test("a prepare whom somebody took for dead enters again, and waits on", () =>
  withBed(async ({ connection, stage }) => {
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    await startPrepare("m-1", stage).done;
    const second = startPrepare("m-2", stage);
    await second.said(/Waiting/);
    const entries = async () => entriesIn(await pool.volumeNames()).map(({ volume }) => volume);
    const [lost = ""] = await entries();
    await removeVolume(pool, lost);
    for (let i = 0; i < 300 && (await entries()).length === 0; i++) await sleep(10);
    assert.notDeepEqual(await entries(), [lost]);
    assert.equal((await entries()).length, 1);
    await removeMachine("m-1", stage);
    await second.done;
    await removeMachine("m-2", stage);
  }, ONE));

Deno.test("cleanup and gc remove the queue entry of a prepare that was killed", () =>
  withBed(async ({ connection, stage }) => {
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    const dead = { process: await deadProcess(), host: await hostMark() };
    const other = entryName("other", dead);
    await makeVolume(pool, other);
    await makeVolume(pool, entryName("m", dead));
    await removeMachine("m", stage);
    assert.deepEqual(await volumesOf(connection), [other, "somebody.qcow2"]);
    await deleteEntries(pool);

    await startPrepare("m-1", stage).done;
    const before = await volumesOf(connection);
    await makeVolume(pool, entryName("m-1", dead));
    await gc({ dryRun: true }, stage);
    assert.equal((await volumesOf(connection)).length, before.length + 1);
    await gc({}, stage);
    assert.deepEqual(await volumesOf(connection), before);
    assert.deepEqual(stage.lines.slice(1), [
      'Removed the queue entry of "m-1": its prepare has ended',
    ]);
    await removeMachine("m-1", stage);
  }));

Deno.test("a machine that cannot start gives its turn back", () =>
  withBed(async ({ connection, stage }) => {
    await assert.rejects(startPrepare("m-1", stage).done, /Cannot start the machine/);
    assert.deepEqual(await volumesOf(connection), ["somebody.qcow2"]);
  }, { machine: { cpu: { mode: "nonsense" } } }));

Deno.test("a pool that is full fails a job at once, before anything is made", () =>
  withBed(async ({ stage }) => {
    const preparing = startPrepare("m-1", stage);
    await assert.rejects(preparing.done, (error) => {
      assert(error instanceof SystemFailure);
      assert.match(
        error.message,
        /can never start, because the host lacks space in the overlay pool.* 100 GiB are reserved/,
      );
      return true;
    });
  }, { config: { host: { reserveDiskGib: 100 } } }));

Deno.test("a pool that is full beside another machine is waited for", () =>
  withBed(async ({ stage }) => {
    const config = merged(stage.config, { host: { reserveDiskGib: 0 } });
    await startPrepare("m-1", toStage({ ...stage, config })).done;
    const second = startPrepare("m-2", stage);
    await second.said(/^Waiting for space in the overlay pool.* \([\d.]+ of 100 GiB are free\)$/m);
    second.abort();
    await assert.rejects(second.done, /cancelled/);
    await removeMachine("m-1", stage);
  }, { config: { host: { reserveDiskGib: 100 } } }));

Deno.test("without any limit, nobody enters the queue", async () => {
  const calls: string[] = [];
  await using connection = await openTestHost({ onCall: (name) => void calls.push(name) });
  await using guest = await TestGuest.start();
  using stage = testStage(connection, guest);
  const look = "virConnectGetAllDomainStats";
  await startPrepare("m-1", stage).done;
  assert.equal(calls.filter((name) => name === look).length, 1);
  const unlimited = merged(stage.config, {
    host: { overcommitMemory: true, reserveDiskGib: 0 },
  });
  await startPrepare("m-2", toStage({ ...stage, config: unlimited })).done;
  assert.equal(calls.filter((name) => name === look).length, 1);
  await removeMachine("m-1", stage);
  await removeMachine("m-2", stage);
});

Deno.test("whoever waits lists the volumes once each time that it looks around", async () => {
  const calls: string[] = [];
  await using connection = await openTestHost({ onCall: (name) => void calls.push(name) });
  await using guest = await TestGuest.start();
  using stage = testStage(connection, guest, {
    config: { host: { maxMachines: 1, queueSeconds: 1 } },
  });
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  await startPrepare("m-1", stage).done;
  calls.length = 0;
  await assert.rejects(
    waitForAdmission("m-2", { pool, memoryMib: 64 }, stage),
    /did not leave the queue/,
  );
  const count = (call: string): number => calls.filter((name) => name === call).length;
  assert(count("virConnectGetAllDomainStats") > 1);
  assert.equal(count("virStoragePoolListAllVolumes"), count("virConnectGetAllDomainStats"));
  for (const machine of ["m-1", "m-2"]) await removeMachine(machine, stage);
});

Deno.test("a job that has no room takes what comes instead, and leaves no entry", () =>
  withBed(async ({ connection, stage }) => {
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    await prepare({ ...JOB, machine: "m-1" }, {}, stage);
    const before = await volumesOf(connection);
    let asked = 0;
    const instead = () => Promise.resolve(++asked === 3 ? { name: "standby" } : null);
    const got = await waitForAdmission("m-2", { pool, memoryMib: 64, instead }, stage);
    assert.deepEqual(got, { name: "standby" });
    assert.deepEqual(await volumesOf(connection), before);
    await removeMachine("m-1", stage);
  }, ONE));

Deno.test("a machine that no job needs yet waits for no room, and leaves no entry", () =>
  withBed(async ({ connection, stage }) => {
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    await prepare({ ...JOB, machine: "m-1" }, {}, stage);
    const before = await volumesOf(connection);
    assert.equal(await tryAdmission("m-2", { pool, memoryMib: 64 }, stage), null);
    assert.deepEqual(await volumesOf(connection), before);
    await removeMachine("m-1", stage);
    const admission = await tryAdmission("m-2", { pool, memoryMib: 64 }, stage);
    assert.equal(entriesIn(await pool.volumeNames()).length, 1);
    await admission?.leave();
    assert.equal(entriesIn(await pool.volumeNames()).length, 0);
  }, { config: { host: { maxMachines: 1 } } }));

Deno.test("a machine for a warm image waits its turn, as those of jobs do", () =>
  withBed(async ({ stage }) => {
    await prepare({ ...JOB, machine: "m-1" }, {}, stage);
    await assert.rejects(warm(["debian-12"], stage), /did not leave the queue within 1 s/);
    await removeMachine("m-1", stage);
  }, { config: { host: { maxMachines: 1, queueSeconds: 1 } } }));

// --- Limits of projects --------------------------------------------------------------------------

/** Settings with this list of rules. */
function ruled(rules: string): NonNullable<TestStageOptions["config"]> {
  return { rules: parseConfig(`rules: ${rules}`, "config.yaml").rules };
}

const OTHER = { project: "other/proj" };

Deno.test("a job over its project's limit waits, and holds back nobody of another project", () =>
  withBed(async ({ connection, stage }) => {
    await startPrepare("m-1", stage).done;
    const second = startPrepare("m-2", stage);
    await second.said(/^Waiting for a machine of its project to end \(1 of 1 run\)$/m);
    const third = startPrepare("m-3", stage);
    await third.said(/^Waiting for a machine of its project to end, 1 job ahead \(1 of 1 run\)$/m);
    const states = (await listMachines(stage)).map(({ machine, state }) => [machine, state]);
    assert.deepEqual(states, [["m-1", "ready"], ["m-2", "waiting"], ["m-3", "waiting"]]);
    await gc({}, toStage({ ...stage, log: assert.fail }));
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    assert.deepEqual(entriesIn(await pool.volumeNames()), []);

    const other = startPrepare("m-4", stage, OTHER);
    await other.done;
    assert.doesNotMatch(other.lines.join("\n"), /Waiting/);
    const last = startPrepare("m-5", stage, { project: "third/proj" });
    await last.said(/^Waiting for a machine to end \(2 of 2 machines run\)$/m);

    await removeMachine("m-1", stage);
    await last.done; // which waited for the host before m-2 did
    await second.said(/^Waiting for a machine to end \(2 of 2 machines run\)$/m);
    await removeMachine("m-4", stage);
    await second.done;
    assert.doesNotMatch(third.lines.join("\n"), /Started/);
    await removeMachine("m-2", stage);
    await third.done;
    await removeMachine("m-3", stage);
    await removeMachine("m-5", stage);
  }, { config: { ...ruled("[{max_machines: 1}]"), host: { maxMachines: 2 } } }));

Deno.test("of many at once, no project has more than it may, and each gets its turn", () =>
  withBed(async ({ connection, stage }) => {
    const most = new Map<string, number>();
    const { promise: full, resolve } = Promise.withResolvers<void>();
    const jobs = Array.from({ length: 12 }, async (_, i) => {
      const project = `grp/${i % 2}`;
      const { machine, done } = startPrepare(`m-${i}`, stage, { project });
      await done;
      const names = (await domainMemory(connection)).map(({ name }) => name);
      const own = names.filter((name) => Number(name.slice(2)) % 2 === i % 2).length;
      most.set(project, Math.max(most.get(project) ?? 0, own));
      if ([...most.values()].join() === "2,2") resolve();
      await full; // so that none ends before as many run as may
      await removeMachine(machine, stage);
    });
    await Promise.all(jobs);
    assert.deepEqual([...most.values()], [2, 2]);
  }, { config: ruled("[{max_machines: 2}]") }));

Deno.test("without any limit of the host, a project's limit holds all the same", () =>
  withBed(async ({ stage }) => {
    await startPrepare("m-1", stage).done;
    const second = startPrepare("m-2", stage);
    await second.said(/Waiting for a machine of its project/);
    await removeMachine("m-1", stage);
    await second.done;
    await removeMachine("m-2", stage);
  }, {
    config: {
      ...ruled("[{max_machines: 1}]"),
      host: { overcommitMemory: true, reserveDiskGib: 0 },
    },
  }));

Deno.test("a project's machines count by whichever rule they started, people's do not", () =>
  withBed(async ({ stage }) => {
    await startPrepare("m-1", stage, { byHand: true }).done;
    await startPrepare("m-2", stage, { isProtected: true }).done;
    const third = startPrepare("m-3", stage);
    await third.said(/^Waiting for a machine of its project to end \(1 of 1 run\)$/m);
    await startPrepare("m-4", stage, { isProtected: true }).done; // behind it, without a limit
    await removeMachine("m-2", stage);
    await third.done; // since it came before m-4
    for (const machine of ["m-1", "m-3", "m-4"]) await removeMachine(machine, stage);
  }, { config: ruled("[{protected: true, limits: {vcpus: 9}}, {max_machines: 1}]") }));

Deno.test("a machine that is kept after its job counts for its project", () =>
  withBed(async ({ stage }) => {
    await startPrepare("m-1", stage, { attemptDir: "/nonexistent/attempt" }).done;
    await changeMetadata(stage.connection, "m-1", { failed: "build_script", keepMinutes: 5 });
    assert(await keepAfterJob("m-1", stage));
    const second = startPrepare("m-2", stage);
    await second.said(/Waiting for a machine of its project to end/);
    await removeMachine("m-1", stage);
    await second.done;
    await removeMachine("m-2", stage);
  }, { config: ruled("[{max_machines: 1}]") }));

Deno.test("a machine no longer needed holds up its project for no longer", () =>
  withBed(async ({ stage }) => {
    await startPrepare("m-1", stage).done;
    const second = startPrepare("m-2", stage);
    await second.said(/Waiting for a machine of its project to end/);
    await changeMetadata(stage.connection, "m-1", {
      attemptDir: "/nonexistent/attempt",
      runner: "1 1 0",
    });
    await second.done;
    assert.match(second.lines.join("\n"), /^Removed a machine no longer needed$/m);
    await removeMachine("m-2", stage);
  }, { config: ruled("[{max_machines: 1}]") }));

Deno.test("a wait for the project that is cancelled, or too long, leaves nothing", () =>
  withBed(async ({ connection, stage }) => {
    await startPrepare("m-1", stage).done;
    const before = await volumesOf(connection);
    const second = startPrepare("m-2", stage);
    await second.said(/Waiting for a machine of its project/);
    second.abort();
    await assert.rejects(second.done, /cancelled/);
    assert.deepEqual(await volumesOf(connection), before);

    const hasty = toStage({
      ...stage,
      config: merged(stage.config, { host: { queueSeconds: 0 } }),
    });
    await assert.rejects(startPrepare("m-2", hasty).done, (error) => {
      assert(error instanceof SystemFailure);
      const wait =
        /did not leave the queue within 0 s: it waits for a machine of its project to end /;
      assert.match(error.message, wait);
      assert.match(
        error.advice ?? "",
        /libvirt-gci list; .* "max_machines" of rule 1 \(rules\[0\]\)/,
      );
      return true;
    });
    assert.deepEqual(await volumesOf(connection), before);
    await removeMachine("m-1", stage);
  }, { config: ruled("[{max_machines: 1}]") }));

Deno.test("what a job waits for its project counts for how long it may wait at all", () =>
  withBed(async ({ stage }) => {
    await startPrepare("m-1", stage).done;
    await startPrepare("m-2", stage, OTHER).done;
    const inTime = merged(stage.config, { host: { queueSeconds: 60 } });
    const patient = toStage({ ...stage, config: inTime });
    const third = startPrepare("m-3", patient, { project: "third/proj" });
    await third.said(/^Waiting for a machine to end/m);
    const start = performance.now();
    const last = startPrepare("m-4", stage);
    await last.said(/^Waiting for a machine of its project to end/m);
    await sleep(3000);
    await removeMachine("m-1", stage); // so the host is full again with m-3
    await last.said(/^Waiting for a machine to end/m);
    await assert.rejects(
      last.done,
      /did not leave the queue within 5 s: it waits for a machine to end/,
    );
    assert(performance.now() - start < 8000);
    await third.done;
    for (const machine of ["m-2", "m-3"]) await removeMachine(machine, stage);
  }, { config: { ...ruled("[{max_machines: 1}]"), host: { maxMachines: 2, queueSeconds: 5 } } }));

Deno.test("a machine that is removed while it waits for its project does not start", () =>
  withBed(async ({ stage }) => {
    await startPrepare("m-1", stage).done;
    const second = startPrepare("m-2", stage);
    await second.said(/Waiting for a machine of its project/);
    await removeMachine("m-2", stage);
    await assert.rejects(second.done, /"m-2" was removed while it waited/);
    await removeMachine("m-1", stage);
  }, { config: ruled("[{max_machines: 1}]") }));

Deno.test("where no rule limits a project, nobody gets an entry, and cleanup looks for none", async () => {
  const calls: string[] = [];
  await using connection = await openTestHost({ onCall: (name) => void calls.push(name) });
  await using guest = await TestGuest.start();
  using stage = testStage(connection, guest, { config: ruled("[{limits: {vcpus: 4}}]") });
  const countLists = async (work: () => Promise<unknown>): Promise<number> => {
    calls.length = 0;
    await work();
    return calls.filter((name) => name === "virStoragePoolListAllVolumes").length;
  };
  const without = {
    prepare: await countLists(() => startPrepare("m-1", stage).done),
    cleanup: await countLists(() => removeMachine("m-1", stage)),
  };
  const limited = toStage({
    ...stage,
    config: merged(stage.config, ruled("[{max_machines: 4}]")),
  });
  assert.equal(await countLists(() => startPrepare("m-1", limited).done), without.prepare + 1);
  assert.equal(await countLists(() => removeMachine("m-1", limited)), without.cleanup + 1);
  assert.deepEqual(await volumesOf(connection), ["somebody.qcow2"]);
});
