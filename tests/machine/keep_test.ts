// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { cleanupAll } from "../../src/commands/cleanup.ts";
import { gc } from "../../src/commands/gc.ts";
import { keep } from "../../src/commands/keep.ts";
import { moment } from "../../src/duration.ts";
import { SystemFailure } from "../../src/errors.ts";
import { keyFile } from "../../src/guest/key_file.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { keepAfterJob } from "../../src/machine/kept.ts";
import {
  isKept,
  type MachineMetadata,
  readMetadata,
  writeMetadata,
} from "../../src/machine/metadata.ts";
import { newOwner } from "../../src/machine/owner.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { run } from "../../src/machine/run_script.ts";
import { sweep, whyUnneeded } from "../../src/machine/unneeded.ts";
import { sleep } from "../../src/wait.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import { bothWaysIn, Masters, type ScriptTestOptions } from "../fakes/test_master.ts";
import { JOB, script, type TestStage, testStage, toStage } from "../fakes/test_stage.ts";

const { machine: MACHINE } = JOB;

/** A job's machine that is ready, and what runs in it says to the job's log. */
interface Bed {
  readonly connection: Connection;
  readonly guest: TestGuest;
  /** That of a later stage. Its lasting directory for keys is another than the attempt's. */
  readonly stage: TestStage;
  readonly said: string[];
  /** Runs a script as GitLab's stage of this name, and gives its error. */
  readonly runAs: (name: string, text: string) => Promise<unknown>;
}

const bothWays = bothWaysIn(withMachine);

/** Gives the test a job's machine, and sees that nothing of it is left after cleanup. */
async function withMachine(
  test: (bed: Bed) => Promise<void>,
  { guest: guestOptions, byMaster = false, ...options }: ScriptTestOptions = {},
): Promise<void> {
  const connection = await openTestHost();
  {
    await using guest = await TestGuest.start(guestOptions);
    using stage = testStage(connection, guest, {
      ...options,
      machine: { keepMinutes: 60, ...options.machine },
    });
    await using masters = new Masters(guest, connection);
    const said: string[] = [];
    const runAs = (name: string, text: string): Promise<unknown> =>
      (byMaster ? masters.run : run)(MACHINE, script(text), stage, {
        name,
        say: (line) => said.push(line),
      })
        .then(() => null, (error) => error);
    await prepare({ ...JOB, attemptDir: "/nonexistent/attempt" }, {}, stage);
    stage.lines.length = 0;
    await test({ connection, guest, stage, said, runAs });
    await removeMachine(MACHINE, stage);
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    assert.deepEqual(await pool.volumeNames(), ["somebody.qcow2"]);
  }
  assert.equal(await connection.close(), 0, "a handle is left");
}

async function metadataOf(connection: Connection, machine = MACHINE): Promise<MachineMetadata> {
  using domain = await Domain.lookup(connection, machine);
  const metadata = await readMetadata(domain);
  assert(metadata);
  return metadata;
}

async function change(connection: Connection, changes: Partial<MachineMetadata>): Promise<void> {
  using domain = await Domain.lookup(connection, MACHINE);
  await writeMetadata(domain, { ...await metadataOf(connection), ...changes });
}

async function exists(connection: Connection): Promise<boolean> {
  using domain = await Domain.find(connection, MACHINE);
  return domain !== null;
}

function inMinutes(minutes: number): number {
  return Date.now() + minutes * 60_000;
}

/** Asserts that a time is that many minutes away, give or take a few seconds. */
function assertIsIn(time: number | null, minutes: number): void {
  const actual = ((time ?? 0) - Date.now()) / 60_000;
  assert(Math.abs(actual - minutes) < 0.2, `${time} is in ${actual} min, not in ${minutes}`);
}

bothWays(
  "the machine of a job that failed is kept, and the job's log says until when and how to log in",
  async ({ connection, stage, said, runAs }) => {
    assert.equal(await runAs("get_sources", "true"), null);
    assert.deepEqual(said, []);
    assert.match(String(await runAs("build_script", "exit 7")), /status 7/);
    const words = said.join("\n");
    const least = moment(inMinutes(60)).slice(0, -6); // but for the minutes
    assert(words.includes(`is kept for 60 min after the job, until ${least}`), words);
    assert.match(words, /^The stage "build_script" failed, so .* including secrets$/m);
    assert.match(words, /^Log in: +libvirt-gci ssh gitlab-proj-.* on the host ".+" \(127\.99/m);
    assert.match(words, /^Keep: +libvirt-gci keep gitlab-proj-\S+ --extend 1h$/m);
    assert.match(words, /^Remove: +libvirt-gci cleanup --machine gitlab-proj-\S+$/m);

    assert(await keepAfterJob(MACHINE, stage));
    const metadata = await metadataOf(connection);
    assert(isKept(metadata));
    assertIsIn(metadata.keptUntil, 60);
    assert.match(stage.lines[0] ?? "", /^Kept .* until .* UTC: the stage "build_script" of its/);
    await run(MACHINE, script("echo here"), stage);
    assert.equal(stage.output.stdout, "here\n");
  },
);

bothWays(
  "the machine of a job that passed is not kept, and its log says nothing of it",
  async ({ stage, said, runAs }) => {
    for (const name of ["get_sources", "build_script", "archive_cache"]) {
      assert.equal(await runAs(name, "true"), null);
    }
    assert.deepEqual(said, []);
    assert(!await keepAfterJob(MACHINE, stage));
  },
);

bothWays("a failure that GitLab ignores keeps no machine", async ({ stage, said, runAs }) => {
  assert.equal(await runAs("build_script", "true"), null);
  for (const name of ["after_script", "cleanup_file_variables"]) {
    assert.match(String(await runAs(name, "exit 1")), /status 1/);
  }
  assert.deepEqual(said, []);
  assert(!await keepAfterJob(MACHINE, stage));
});

bothWays(
  "a stage that GitLab tries again with success has not failed",
  async ({ connection, stage, said, runAs }) => {
    await runAs("get_sources", "exit 1");
    await runAs("clear_worktree", "exit 1");
    await runAs("get_sources", "exit 1");
    assert.equal((await metadataOf(connection)).failed, "get_sources");
    assert.equal(said.filter((line) => line.includes("failed")).length, 1);
    await runAs("restore_cache", "true");
    assert.equal((await metadataOf(connection)).failed, "get_sources");
    await runAs("get_sources", "true");
    assert.match(
      said.at(-1) ?? "",
      /^The stage "get_sources" passed when it was retried, so .* not kept/,
    );
    assert.equal((await metadataOf(connection)).failed, "");
    assert(!await keepAfterJob(MACHINE, stage));
    await runAs("build_script", "exit 1");
    assert(await keepAfterJob(MACHINE, stage));
  },
);

bothWays(
  "what follows a failure neither hides it nor says it again",
  async ({ connection, said, runAs }) => {
    await runAs("build_script", "exit 1");
    const lines = said.length;
    await runAs("after_script", "true");
    await runAs("upload_artifacts_on_failure", "exit 1");
    assert.equal(said.length, lines);
    assert.equal((await metadataOf(connection)).failed, "build_script");
  },
);

bothWays(
  "a connection that is lost while the machine lives is a failure too",
  async ({ stage, runAs }) => {
    assert(await runAs("build_script", "true") instanceof SystemFailure);
    assert(await keepAfterJob(MACHINE, stage));
  },
  { guest: { loseScripts: true } },
);

bothWays(
  "a machine that ended cannot be kept, and nobody says that it is",
  async ({ connection, stage, said, runAs }) => {
    const ran = runAs("build_script", "sleep 30");
    using domain = await Domain.lookup(connection, MACHINE);
    await domain.destroy();
    assert.match(String(await ran), /ended: it powered off/);
    assert.deepEqual(said, []);
    assert(!await keepAfterJob(MACHINE, stage));
    assert(!await keepAfterJob("no-such", stage));
  },
);

bothWays("a cancelled job has not failed", async ({ connection, stage, said, runAs }) => {
  const ran = runAs("build_script", "sleep 30");
  setTimeout(() => stage.abort(new SystemFailure({ what: "Cancelled by SIGTERM" })), 500);
  assert.match(String(await ran), /Cancelled/);
  assert.deepEqual(said, []);
  assert.equal((await metadataOf(connection)).failed, "");
});

Deno.test("a script that a person runs in a job's machine fails no job", () =>
  withMachine(async ({ stage }) => {
    await assert.rejects(run(MACHINE, script("exit 1"), stage), /status 1/);
    assert(!await keepAfterJob(MACHINE, stage));
  }));

Deno.test("without keep_minutes no machine is kept, nor one of an earlier version", () =>
  withMachine(async ({ connection, stage, said, runAs }) => {
    await runAs("build_script", "exit 1");
    await change(connection, { keepMinutes: null });
    await runAs("build_script", "exit 1");
    assert.deepEqual(said, []);
    assert(!await keepAfterJob(MACHINE, stage));
  }, { machine: { keepMinutes: 0 } }));

/** A connection that is lost once the machine was looked up: its daemon was stopped. */
function lostAfterLookup(connection: Connection): Connection {
  let lookups = 0;
  const ask = connection.ask.bind(connection) as (...args: unknown[]) => Promise<unknown>;
  return seenAs(connection, {
    ask: (...args: unknown[]) =>
      args[0] === "virDomainLookupByName" && lookups++ > 0
        ? Promise.reject(new Error("it was stopped"))
        : ask(...args),
  });
}

/** The connection with other methods. */
function seenAs(
  connection: Connection,
  methods: Readonly<Record<PropertyKey, unknown>>,
): Connection {
  return new Proxy(connection, {
    get: (_, name) => {
      if (name in methods) return methods[name];
      const value = Reflect.get(connection, name, connection);
      return typeof value === "function" ? value.bind(connection) : value;
    },
  });
}

Deno.test("a failure is noted over a new connection if the daemon was started anew", () =>
  withMachine(async ({ connection, stage, said }) => {
    const fresh = seenAs(connection, { [Symbol.asyncDispose]: () => Promise.resolve() });
    const connect = (): Promise<Connection> => Promise.resolve(fresh);
    const restarted = toStage({ ...stage, connection: lostAfterLookup(connection), connect });
    const ofJob = { name: "build_script", say: (line: string) => void said.push(line) };
    await assert.rejects(run(MACHINE, script("exit 7"), restarted, ofJob), { scriptStatus: 7 });
    assert.match(said.join(), /is kept for 60 min/);
    assert(await keepAfterJob(MACHINE, stage));
  }));

Deno.test("when a failure cannot be noted, the script's status counts and the log says why", () =>
  withMachine(async ({ connection, stage, said }) => {
    const connect = (): Promise<Connection> => Promise.reject(new Error("it does not run"));
    const stopped = toStage({ ...stage, connection: lostAfterLookup(connection), connect });
    const ofJob = { name: "build_script", say: (line: string) => void said.push(line) };
    await assert.rejects(run(MACHINE, script("exit 7"), stopped, ofJob), { scriptStatus: 7 });
    assert.match(said.join(), /^The machine ".*" is not kept: it does not run$/);
  }));

Deno.test("the key of a kept machine moves to where it lasts, and goes with the machine", () =>
  withMachine(async ({ connection, guest, stage }) => {
    const attemptDir = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
    const key = keyFile(attemptDir, MACHINE);
    await Deno.writeTextFile(key, guest.privateKey);
    await change(connection, { key, failed: "build_script" });
    const lasting = keyFile(stage.directories.lastingKeys, MACHINE);
    await Deno.writeTextFile(lasting, "of a cleanup that was killed");
    const later = toStage({ ...stage, directories: { ...stage.directories, keys: attemptDir } });
    assert(await keepAfterJob(MACHINE, later));
    assert.equal((await metadataOf(connection)).key, lasting);
    assert.equal(((await Deno.stat(lasting)).mode ?? 0) & 0o777, 0o600);
    await Deno.remove(attemptDir, { recursive: true });
    await run(MACHINE, script("echo here"), stage);
    assert(await keepAfterJob(MACHINE, later)); // a second cleanup
    await run(MACHINE, script("echo there"), stage);
    assert.equal(stage.output.stdout, "here\nthere\n");
    await removeMachine(MACHINE, later);
    await assert.rejects(Deno.stat(lasting), Deno.errors.NotFound);
  }));

Deno.test("of a kept machine whose guest is gone, the key goes with the rest", () =>
  withMachine(async ({ connection, stage }) => {
    const lasting = keyFile(stage.directories.lastingKeys, MACHINE);
    await Deno.writeTextFile(lasting, "key");
    using domain = await Domain.lookup(connection, MACHINE);
    await domain.destroy();
    await removeMachine(
      MACHINE,
      toStage({ ...stage, directories: { ...stage.directories, keys: "/nonexistent" } }),
    );
    await assert.rejects(Deno.stat(lasting), Deno.errors.NotFound);
  }));

Deno.test("a machine whose key cannot be kept is not kept, with a warning", () =>
  withMachine(async ({ connection, stage }) => {
    const key = keyFile("/nonexistent", MACHINE);
    await change(connection, { key, failed: "build_script" });
    assert(!await keepAfterJob(MACHINE, stage));
    assert.match(stage.warnings.join(), /^Cannot keep the machine ".*": .*\/nonexistent\//);
  }));

Deno.test("gc leaves a kept machine until its time is over, whoever is gone, and says so then", () =>
  withMachine(async ({ connection, stage, runAs }) => {
    await runAs("build_script", "exit 1");
    await keepAfterJob(MACHINE, stage);
    await change(connection, { runner: "" }); // and the attempt's directory is not there
    stage.lines.length = 0;
    await gc({}, stage);
    await sweep("next", stage);
    assert(await exists(connection));
    assert.deepEqual(stage.lines, []);
    const over = inMinutes(-1);
    await change(connection, { keptUntil: over, deadline: over });
    await gc({}, stage);
    assert(!await exists(connection));
    assert.match(stage.lines.join(), new RegExp(`^Removed .*: it was kept until ${moment(over)}$`));
  }));

Deno.test("prepare removes a kept machine whose time is over", () =>
  withMachine(async ({ connection, stage }) => {
    const over = inMinutes(-1);
    await change(connection, { keptUntil: over, deadline: over });
    await sweep("next", stage);
    assert(!await exists(connection));
  }));

Deno.test("a wish to keep ends no job: it is needed while its runner is there", async () => {
  const owner = await newOwner({
    id: "1",
    project: "p",
    timeoutSeconds: 3600,
    attemptDir: "/nonexistent/attempt",
    configCaller: null,
  });
  assert.equal(await whyUnneeded({ ...owner, keptUntil: inMinutes(-1) }), null);
  const lost = { ...owner, runner: "" };
  assert.match(await whyUnneeded({ ...lost, keptUntil: inMinutes(-1) }) ?? "", /runner has ended/);
  assert.equal(await whyUnneeded({ ...lost, keptUntil: inMinutes(1) }), null);
  assert.equal(await whyUnneeded({ ...lost, keptUntil: inMinutes(1), host: "other" }), null);
});

Deno.test("a machine that is to be kept after its job outlives its runner", () =>
  withMachine(async ({ connection, stage, runAs }) => {
    await change(connection, { attemptDir: "/", runner: "1 1 0", isRunner: true });
    await runAs("build_script", "exit 1");
    await sweep("next", stage);
    assert(await exists(connection));
    await runAs("build_script", "true"); // GitLab tried it again
    await sweep("next", stage);
    assert(!await exists(connection));
  }));

Deno.test("a machine whose runner was killed stays as long as its job's log says, and no longer", () =>
  withMachine(async ({ connection, stage, said, runAs }) => {
    await change(connection, { attemptDir: "/", runner: "1 1 0", isRunner: true });
    await runAs("build_script", "exit 1");
    assert.match(said.join("\n"), /is kept for 60 min after the job/);
    const { promisedUntil } = await metadataOf(connection);
    assertIsIn(promisedUntil, 60);
    await change(connection, { deadline: inMinutes(-1) });
    await gc({}, stage);
    assert(await exists(connection), "the deadline came before");
    await change(connection, { deadline: inMinutes(600), promisedUntil: inMinutes(-1) });
    stage.lines.length = 0;
    await gc({}, stage);
    assert(!await exists(connection), "the deadline has not come");
    assert.match(stage.lines.join("\n"), /^Removed ".*" \(.*\): its runner has ended$/);
  }));

Deno.test("keep extends a kept machine from its end, or from now if that is over", () =>
  withMachine(async ({ connection, stage, runAs }) => {
    await runAs("build_script", "exit 1");
    await keepAfterJob(MACHINE, stage);
    await keep(MACHINE, 1800, stage);
    let metadata = await metadataOf(connection);
    assertIsIn(metadata.keptUntil, 90);
    assert(isKept(metadata));
    assert.match(stage.lines.at(-1) ?? "", /^The machine ".*" is kept until \d{4}-.* UTC$/);
    const over = inMinutes(-100);
    await change(connection, { keptUntil: over, deadline: over });
    await keep(MACHINE, 600, stage);
    metadata = await metadataOf(connection);
    assertIsIn(metadata.keptUntil, 10);
    assert(isKept(metadata));
  }));

Deno.test("a second cleanup neither keeps a machine longer nor one whose time is over", () =>
  withMachine(async ({ connection, stage, runAs }) => {
    await runAs("build_script", "exit 1");
    for (const [minutes, stays] of [[10, true], [-1, false]] as const) {
      await keepAfterJob(MACHINE, stage);
      const end = inMinutes(minutes);
      await change(connection, { keptUntil: end, deadline: end });
      assert.equal(await keepAfterJob(MACHINE, stage), stays);
      assert.equal((await metadataOf(connection)).keptUntil, end);
    }
  }));

Deno.test("keep on a running job's machine keeps it after the job, also if that passes", () =>
  withMachine(async ({ connection, stage, runAs }) => {
    const { deadline } = await metadataOf(connection);
    await keep(MACHINE, 7200, stage);
    assert(!isKept(await metadataOf(connection)));
    assert.equal((await metadataOf(connection)).deadline, deadline);
    await runAs("build_script", "true");
    assert(await keepAfterJob(MACHINE, stage));
    assertIsIn((await metadataOf(connection)).keptUntil, 120);
  }, { machine: { keepMinutes: 0 } }));

Deno.test("keep while a script runs is not forgotten when that fails", () =>
  withMachine(async ({ connection, stage, guest, runAs }) => {
    const ran = runAs("build_script", "sleep 1; exit 1");
    while (!guest.inputs.some((input) => input.includes("exit 1"))) await sleep(5);
    await keep(MACHINE, 7200, stage);
    await ran;
    await keepAfterJob(MACHINE, stage);
    assertIsIn((await metadataOf(connection)).keptUntil, 120);
  }));

Deno.test("keep while a script runs is not forgotten when the guest does not answer its cancel", () =>
  withMachine(async ({ connection, stage, guest, runAs }) => {
    const ran = runAs("build_script", "sleep 30");
    while (!guest.inputs.some((input) => input.includes("sleep 30"))) await sleep(5);
    await keep(MACHINE, 7200, stage);
    guest.suspend();
    stage.abort(new SystemFailure({ what: "Cancelled by SIGTERM" }));
    await ran;
    const { silent, keptUntil } = await metadataOf(connection);
    assert.equal(silent, true);
    assertIsIn(keptUntil, 120);
  }));

Deno.test("keep refuses a machine by hand, one that is gone, and what is not ours", () =>
  withMachine(async ({ connection, stage }) => {
    await change(connection, { attemptDir: "" });
    await assert.rejects(keep(MACHINE, 60, stage), {
      name: "UsageError",
      message: /was created by hand, so it stays until you remove it/,
      advice: /cleanup --machine/,
    });
    await assert.rejects(keep("no-such", 60, stage), /machine "no-such" does not exist/);
    await assert.rejects(keep("somebody", 60, stage), /was not created by libvirt-gci/);
  }));

Deno.test("a person's machine has no time after a failure: it stays", () =>
  withMachine(async ({ connection, stage }) => {
    await prepare({ ...JOB, machine: "by-hand", attemptDir: null }, {}, stage);
    assert.equal((await metadataOf(connection, "by-hand")).keepMinutes, null);
    await removeMachine("by-hand", stage);
  }));

Deno.test("no more machines are kept at once than host.max_kept_machines, whoever fails how often", () =>
  withMachine(async ({ connection, stage, said, runAs }) => {
    const others = ["m-1", "m-2"];
    for (const machine of others) {
      await prepare({ ...JOB, machine, attemptDir: "/nonexistent/attempt" }, {}, stage);
      const ofJob = { name: "build_script", say: (line: string) => void said.push(line) };
      await assert.rejects(run(machine, script("exit 1"), stage, ofJob), /status 1/);
    }
    await keepAfterJob("m-1", stage); // the other one's job has not ended
    said.length = 0;
    await runAs("build_script", "exit 1");
    await runAs("upload_artifacts_on_failure", "exit 1");
    assert.match(said.join("\n"), /^The machine ".*" is not kept after the job: at most 2 /);
    assert(!await keepAfterJob(MACHINE, stage));
    for (const machine of others) {
      assert(await keepAfterJob(machine, stage));
      await removeMachine(machine, stage);
    }
    assert.equal((await metadataOf(connection)).failed, "build_script");
  }, { config: { host: { maxKeptMachines: 2 } } }));

Deno.test("of two jobs that fail at once, one is kept where one may be, or none", () =>
  withMachine(async ({ stage }) => {
    const machines = ["m-1", "m-2", "m-3"];
    for (const machine of machines) {
      await prepare({ ...JOB, machine, attemptDir: "/nonexistent/attempt" }, {}, stage);
    }
    const ofJob = { name: "build_script", say: () => {} };
    await Promise.allSettled(
      machines.map((machine) => run(machine, script("exit 1"), stage, ofJob)),
    );
    const kept = await Promise.all(machines.map((machine) => keepAfterJob(machine, stage)));
    assert(kept.filter((is) => is).length <= 1);
    for (const machine of machines) await removeMachine(machine, stage);
  }, { config: { host: { maxKeptMachines: 1 } } }));

Deno.test("cleanup --all counts kept machines apart, and removes them", () =>
  withMachine(async ({ connection, stage, runAs }) => {
    await runAs("build_script", "exit 1");
    await keepAfterJob(MACHINE, stage);
    const asked: string[] = [];
    const ask = (question: string): Promise<boolean> => {
      asked.push(question);
      return Promise.resolve(true);
    };
    await cleanupAll({ yes: false, ask }, stage);
    assert.deepEqual(asked, ["Remove 1 machine, 1 of them kept after their jobs?"]);
    assert(!await exists(connection));
  }));
