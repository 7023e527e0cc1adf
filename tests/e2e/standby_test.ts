// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { loadLibvirt } from "../../ffi/libvirt.ts";
import { loadProc } from "../../ffi/proc.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { reserveName } from "../../src/machine/name.ts";
import { ownProcess } from "../../src/machine/owner.ts";
import {
  acquireStandby,
  markWaiting,
  newStandbyName,
  waitingIn,
} from "../../src/machine/standby/waiting.ts";
import { allOf } from "../../src/wait.ts";
import {
  assertVerdict,
  call,
  e2eTest,
  job,
  LOGINS,
  loginsIn,
  machineOf,
  PROGRAM,
  settingsFile,
  TESTBED,
  virsh,
} from "./bed.ts";
import {
  by,
  done,
  environmentsOfFillers,
  untilNobodyFills,
  waiting,
  withStandbys,
} from "./standby_bed.ts";
import { readOpenMetrics } from "../fakes/open_metrics.ts";
import { runJob, runnerFor } from "../harness/runner.ts";

async function untilTwoWait(file: string): Promise<void> {
  await untilNobodyFills();
  assert.equal((await waiting(file)).length, 2);
}

// Here, so that no test is blamed for it.
loadLibvirt();
loadProc();

/** A job gets one, and in the background another is made. */
async function servesAJob(file: string): Promise<void> {
  const before = await waiting(file);
  const script = [
    "hostname; cut -d' ' -f1,3 ~/.ssh/authorized_keys",
  ];
  const result = await runJob(runnerFor(PROGRAM, ["--config", file]), job({ script }));
  assertVerdict(result, "success");
  const [, standby] = /Using the standby machine "([^"]+)"/.exec(result.logText) ??
    [];
  assert(standby !== undefined && before.includes(standby), result.logText);
  assert.match(result.logText, new RegExp(`\\n${machineOf(result)}\\nssh-ed25519 libvirt-gci\\n`));
  assert.doesNotMatch(await virsh("list", "--name"), new RegExp(standby));
  await untilTwoWait(file);
}

/** Three at once, for two that wait: no two get the same, and each gets one. */
async function goesToOne(file: string): Promise<void> {
  const machines = ["gci-e2e-one", "gci-e2e-two", "gci-e2e-three"];
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    for (const machine of machines) await by(file, ["cleanup", "-m", machine]);
  });
  const logs = await allOf(
    machines.map((machine) => done(file, ["prepare", "-d", "lite", "-m", machine])),
  );
  const standbys = logs.flatMap((log) =>
    /Using the standby machine "([^"]+)"/.exec(log)?.[1] ?? []
  );
  assert.equal(standbys.length, 2, logs.join("\n"));
  assert.equal(new Set(standbys).size, 2);
  for (const machine of machines) {
    await done(file, ["run", "-m", machine, "--", "true"]);
    assert.match(await done(file, ["logs", machine]), /\S/);
  }
  const listed = (await done(file, ["list"])).split("\n");
  for (const machine of machines) {
    assert.equal(listed.filter((line) => line.startsWith(`${machine} `)).length, 1);
  }
  assert.match(await virsh("list", "--title"), /standby-\w+ +running +libvirt-gci: lite/);
  await untilTwoWait(file);
}

/** A guest that died while it waited is removed, and one that hangs costs the next job a warning. */
async function survivesDeadGuests(file: string): Promise<void> {
  const [one = "", two = ""] = await waiting(file);
  await virsh("destroy", one);
  await virsh("suspend", two);
  const log = await done(file, ["prepare", "-d", "lite", "-m", "gci-e2e-one"]);
  assert.match(log, /Removed a machine no longer needed/);
  assert.match(
    log,
    new RegExp(`Cannot use the standby machine "${two}": libvirt: .* not running`),
  );
  assert.match(log, /Resumed the machine "gci-e2e-one"/);
  await done(file, ["cleanup", "-m", "gci-e2e-one"]);
  await untilTwoWait(file);
}

/**
 * What cleanup starts in the background outlives the attempt's directory, which goes at once, and has
 * none of the job's variables.
 */
async function refillsAfterCleanup(file: string): Promise<void> {
  await done(file, ["standby", "--remove"]);
  const attempt = await Deno.makeTempDir({ prefix: "libvirt-gci-e2e-" });
  const [program = "", ...args] = [...PROGRAM, "--config", file, "cleanup", "-m", "gci-e2e-one"];
  const env = { CUSTOM_ENV_SECRET: "of the job" };
  const { success } = await new Deno.Command(program, { args, cwd: attempt, env }).output();
  await Deno.remove(attempt);
  assert(success);
  const environments = await environmentsOfFillers();
  assert(environments.length > 0, "nobody makes machines wait");
  for (const it of environments) assert.doesNotMatch(it, /CUSTOM_ENV|of the job/);
  await untilTwoWait(file);
}

/** A job for which there is no room gets that of a machine that waits; gc removes what is unwanted. */
async function givesWay(file: string): Promise<void> {
  const settings = { host: { max_machines: 2 } };
  const prepare = ["prepare", "-d", "lite", "-m", "gci-e2e-one"];
  const { status, stderr } = await call(prepare, { settings });
  assert.equal(status, 0, stderr);
  assert.equal((await waiting(file)).length, 1);
  assert.match(await done(file, ["gc"]), /^$/);
  const { stdout } = await call(["gc"]);
  assert.match(stdout, /Removed "standby-\w+": standby machine that matches no setting any more/);
  await call(["cleanup", "-m", "gci-e2e-one"]);
}

/** A process that was killed while it created standby machines left their name behind. */
async function leaveDeadFiller(): Promise<void> {
  await using connection = await Connection.open("qemu:///system");
  using pool = await StoragePool.lookup(connection, TESTBED.overlayPool);
  const dead = { ...await ownProcess(3600), runner: "1 1 0" };
  assert(await reserveName(pool, "standby-filler", dead));
}

e2eTest("a job gets a machine that waits, and another is made", async () => {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-e2e-" });
  await using undo = new AsyncDisposableStack();
  undo.defer(() => Deno.remove(directory, { recursive: true }));
  const metricsFile = `${directory}/gci.prom`;
  await withStandbys(2, async (_, file) => {
    await leaveDeadFiller();
    assert.match(
      await done(file, ["standby"]),
      /is ready in .*\n.*is ready in /,
    );
    await servesAJob(file);
    const samples = readOpenMetrics(await Deno.readTextFile(metricsFile));
    const counts = ["claim", "record", "keys"].map((phase) =>
      samples.get(`libvirt_gci_prepare_phase_seconds_count{phase="${phase}"}`)
    );
    assert.deepEqual(counts, [1, 1, 1]);
  }, { metrics_file: metricsFile });
});

e2eTest(
  "of machines that wait, each goes to one job, and no dead one or filler is in the way",
  async () => {
    await withStandbys(2, async (_, file) => {
      await done(file, ["standby"]);
      await goesToOne(file);
      await survivesDeadGuests(file);
      await refillsAfterCleanup(file);
      await givesWay(file);
    });
  },
  { thorough: true },
);

e2eTest("of many who want the same waiting machine, libvirt gives it to one", async () => {
  await using stack = new AsyncDisposableStack();
  const pools = await Promise.all(Array.from({ length: 8 }, async () => {
    const connection = stack.use(await Connection.open("qemu:///system"));
    return stack.use(await StoragePool.lookup(connection, TESTBED.overlayPool));
  }));
  for (let round = 0; round < 25; round++) {
    const standby = { name: newStandbyName(), kind: "0123456789abcdef" };
    await markWaiting(pools[0]!, standby);
    const got = await Promise.all(pools.map((pool) => acquireStandby(pool, standby)));
    assert.equal(got.filter((isOurs) => isOurs).length, 1);
  }
  assert.deepEqual(waitingIn(await pools[0]!.volumeNames()), []);
});

/** Settings by which a machine boots and waits. */
const BOOTED = { start: "cold", templates: { cloud: { standby: 1 } } };

e2eTest("a job logs in to a machine that waited for it once", async () => {
  using file = settingsFile(BOOTED);
  const { path } = file;
  try {
    await done(path, ["standby"]);
    const variables = [{ key: "DISTRO", value: "cloud" }];
    const result = await runJob(
      runnerFor(PROGRAM, ["--config", path]),
      job({ id: 96, variables, script: [LOGINS], afterScript: [LOGINS] }),
    );
    assertVerdict(result, "success");
    assert.match(result.logText, /Using the standby machine/);
    const ofMaker = 1; // who made it wait saw that it was ready
    assert.deepEqual(loginsIn(result.logText), [ofMaker + 1, ofMaker + 1]);
  } finally {
    await untilNobodyFills();
    await by(path, ["standby", "--remove"]);
  }
}, { thorough: true });

e2eTest(
  "without a warm image, a machine boots and waits, and lets in the job that gets it",
  async () => {
    const machine = "gci-e2e-one";
    using file = settingsFile(BOOTED);
    const { path } = file;
    try {
      assert.match(await done(path, ["standby"]), /is ready in .*start .*boot /);
      const [standby = ""] = await waiting(path);
      const log = await done(path, ["prepare", "-d", "cloud", "-m", machine]);
      assert.match(log, new RegExp(`Using the standby machine "${standby}"`));
      const script = "hostname; cut -d' ' -f1,3 ~/.ssh/authorized_keys";
      const said = await done(path, ["run", "-m", machine, "--", "sh", "-c", script]);
      assert.equal(said, `${machine}\nssh-ed25519 libvirt-gci\n`);
    } finally {
      await untilNobodyFills();
      await by(path, ["cleanup", "-m", machine]);
      await untilNobodyFills();
      await by(path, ["standby", "--remove"]);
    }
  },
  { thorough: true },
);
