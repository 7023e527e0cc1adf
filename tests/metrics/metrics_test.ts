// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { fileSystemSpace } from "../../ffi/proc.ts";
import { BuildFailure, FAULTS, ScriptFailure, SystemFailure } from "../../src/errors.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { measure, Meter, type MeterOptions } from "../../src/metrics/meter.ts";
import {
  addObservation,
  metricsText,
  type Observation,
  parseMetrics,
  type Samples,
} from "../../src/metrics/metrics.ts";
import { addToMetricsFile } from "../../src/metrics/metrics_file.ts";
import { DEFAULT_CONFIG } from "../../src/settings/settings.ts";
import { sleep } from "../../src/wait.ts";
import { merged } from "../fakes/merged.ts";
import { RUN } from "../fakes/metrics_process.ts";
import { type MetricSamples, readOpenMetrics } from "../fakes/open_metrics.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import { bareStage, JOB, testStage, toStage } from "../fakes/test_stage.ts";
import { withDirectory } from "../fakes/with_directory.ts";

/** Gives the test a directory, and sees that nothing but the metrics are in it in the end. */
function withFile(test: (file: string) => Promise<void>): Promise<void> {
  return withDirectory(async (directory) => {
    await test(`${directory}/gci.prom`);
    const files = await Array.fromAsync(Deno.readDir(directory), ({ name }) => name);
    assert.deepEqual(files.filter((name) => name !== "gci.prom"), []);
  });
}

async function samplesIn(file: string): Promise<MetricSamples> {
  return readOpenMetrics(await Deno.readTextFile(file));
}

/** Adds it to the file, and fails if that gives a warning. */
function add(file: string, observation: Observation, patienceMs = 10_000): Promise<void> {
  return addToMetricsFile(file, observation, { warn: assert.fail, patienceMs });
}

const RUNS = 'libvirt_gci_stages_total{stage="run",result="success"}';

/** Written by the tests with UPDATE=1. */
const GOLDEN = new URL("../data/metrics.prom", import.meta.url);

Deno.test("the file is this text", async () => {
  const samples: Samples = new Map();
  addObservation(samples, {
    ...RUN,
    stage: "prepare",
    phases: [["overlay", 0.0504], ["start", 0.1], ["address", 4], ["ssh", 700], ["total", 704.25]],
    gauges: {
      running: 2,
      stopped: 1,
      diskBytes: 3e9,
      poolCapacityBytes: 4e12,
      poolAvailableBytes: 1.5e12,
    },
  });
  addObservation(samples, { ...RUN, result: "job", fault: "script" });
  const text = metricsText(samples, "1.2.3");
  if (Deno.env.has("UPDATE")) await Deno.writeTextFile(GOLDEN, text);
  assert.equal(text, await Deno.readTextFile(GOLDEN));
  assert.deepEqual(parseMetrics(text), new Map(readOpenMetrics(text)));
});

Deno.test("what nobody has measured is not in the file, and what nobody counted is 0", () => {
  const text = metricsText(new Map(), "1.2.3");
  const samples = readOpenMetrics(text);
  assert.equal(samples.get(RUNS), 0);
  assert.equal(samples.get('libvirt_gci_failures_total{cause="address"}'), 0);
  assert.doesNotMatch(text, /machines|pool/);
});

Deno.test("each observation is added, and gauges are what they were last", () =>
  withFile(async (file) => {
    const gauges = { running: 5, stopped: 0, poolCapacityBytes: 100, poolAvailableBytes: 50 };
    await add(file, { ...RUN, gauges: { ...gauges, diskBytes: 7 } });
    await add(file, { ...RUN, gauges: { ...gauges, running: 1, diskBytes: null } });
    await add(file, { ...RUN, version: "1.2.4" });
    await add(file, { ...RUN, result: "host", fault: "lost" });
    await add(file, { ...RUN, phases: [["ssh", 1], ["total", 2]] });
    await add(file, { ...RUN, phases: [["ssh", 1.001]] });
    const samples = await samplesIn(file);
    const values = Object.entries({
      [RUNS]: 5,
      'libvirt_gci_stages_total{stage="run",result="host"}': 1,
      'libvirt_gci_failures_total{cause="lost"}': 1,
      'libvirt_gci_build_info{version="1.2.3"}': 1,
      'libvirt_gci_machines{state="running"}': 1,
      libvirt_gci_machines_disk_bytes: 7,
      'libvirt_gci_prepare_phase_seconds_bucket{phase="ssh",le="0.5"}': 0,
      'libvirt_gci_prepare_phase_seconds_bucket{phase="ssh",le="1.0"}': 1,
      'libvirt_gci_prepare_phase_seconds_bucket{phase="ssh",le="2.5"}': 2,
      'libvirt_gci_prepare_phase_seconds_count{phase="ssh"}': 2,
      'libvirt_gci_prepare_phase_seconds_sum{phase="ssh"}': 2.001,
    });
    for (const [name, value] of values) assert.equal(samples.get(name), value, name);
    assert(!samples.has('libvirt_gci_build_info{version="1.2.4"}'), "one version");
  }));

Deno.test("everybody may read the file, whatever the umask", () =>
  withFile(async (file) => {
    const umask = Deno.umask(0o077);
    try {
      await add(file, RUN);
    } finally {
      Deno.umask(umask);
    }
    assert.equal(((await Deno.stat(file)).mode ?? 0) & 0o7777, 0o644);
  }));

/** Starts a process that counts runs. */
function countingProcess(file: string, runs: number): Deno.ChildProcess {
  const main = new URL("../fakes/metrics_process.ts", import.meta.url).pathname;
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--no-check", "--allow-all", main, file, String(runs)],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

Deno.test("20 processes at once lose no count, though some are killed", () =>
  withFile(async (file) => {
    const doomed = Array.from({ length: 4 }, () => countingProcess(file, 100_000));
    const living = Array.from({ length: 20 }, () => countingProcess(file, 20));
    const readers = doomed.map((process) => new Response(process.stdout).text());
    const ends = living.map((process) => process.output());
    for (const [i, process] of doomed.entries()) {
      while (!await Deno.stat(file).then(() => true, () => false)) await sleep(10);
      await sleep(100 + 50 * i);
      process.kill("SIGKILL");
      await process.stderr.cancel();
    }
    for (const { code, stderr } of await Promise.all(ends)) {
      assert.equal(code, 0, new TextDecoder().decode(stderr));
    }
    let told = 20 * 20;
    for (const text of await Promise.all(readers)) told += text.split("\n").length - 1;
    await add(file, RUN); // and takes over what a killed process left
    const counted = (await samplesIn(file)).get(RUNS) ?? 0;
    // One may be killed after it has written a count and before it has told.
    assert(counted >= told + 1 && counted <= told + 1 + doomed.length, `${counted} of ${told} + 1`);
  }));

Deno.test("a reader sees the file whole at any time", () =>
  withFile(async (file) => {
    await add(file, RUN);
    let isWritten = false;
    const writes = (async () => {
      for (let i = 0; i < 100; i++) await add(file, RUN);
    })().finally(() => isWritten = true);
    let reads = 0;
    for (; !isWritten; reads++) assert(((await samplesIn(file)).get(RUNS) ?? 0) >= 1);
    await writes;
    assert(reads > 10, `${reads}`);
  }));

Deno.test("what a killed process left half-written is of no use and in nobody's way", () =>
  withFile(async (file) => {
    await add(file, RUN);
    await Deno.writeTextFile(`${file}.tmp`, "x".repeat(100_000), { mode: 0o600 });
    await add(file, RUN);
    assert.equal((await samplesIn(file)).get(RUNS), 2);
  }));

Deno.test("who holds the file up costs a stage a second and its counts, no more", () =>
  withFile(async (file) => {
    await add(file, RUN);
    {
      using held = await Deno.open(`${file}.lock`, { write: true, create: true });
      await held.lock(true);
      const start = performance.now();
      const warning = await warningOf(file);
      const elapsed = performance.now() - start;
      assert(elapsed > 900 && elapsed < 3000, `${elapsed} ms`);
      assert.match(
        warning,
        /Cannot count this stage .*\nbecause: Another process has kept .* for 1 s/,
      );
      await Deno.remove(`${file}.lock`);
    }
    await add(file, RUN, 0);
    assert.equal((await samplesIn(file)).get(RUNS), 2);
  }));

Deno.test("an empty file is begun, a damaged one anew with a warning, once", () =>
  withFile(async (file) => {
    await Deno.writeTextFile(file, "");
    await add(file, RUN);
    const whole = await Deno.readTextFile(file);
    for (
      const damaged of [
        whole.slice(0, 1000),
        whole.replace("# EOF\n", ""),
        whole.replace(/ 1\n/, " 1x\n"),
        whole.replace(/ 1\n/, "\n"),
        whole.replace(/^libvirt_gci_stages.*$/m, "\0".repeat(30)),
      ]
    ) {
      await Deno.writeTextFile(file, damaged);
      const warnings: string[] = [];
      await addToMetricsFile(file, RUN, { warn: (line) => warnings.push(line) });
      assert.match(
        warnings.join("|"),
        /^The metrics in "[^|]*" were damaged, so they start again from zero$/,
      );
      await add(file, RUN);
      assert.equal((await samplesIn(file)).get(RUNS), 2);
    }
  }));

Deno.test("a file that is not ours stays as it is", () =>
  withFile(async (file) => {
    for (const text of ["node_cpu 1\n", "# TYPE node_cpu gauge\n# EOF\n", "\0".repeat(10)]) {
      await Deno.writeTextFile(file, text);
      await assert.rejects(
        add(file, RUN),
        /was not written by libvirt-gci, so it is not changed/,
      );
      assert.equal(await Deno.readTextFile(file), text);
    }
    await Deno.writeTextFile(file, `# TYPE libvirt_gci_x gauge\n${"#".repeat(1024 * 1024)}`);
    await assert.rejects(add(file, RUN), /was not written by libvirt-gci/);
    await Deno.remove(file);
    await new Deno.Command("mkfifo", { args: [file] }).output();
    await assert.rejects(add(file, RUN), /was not written by libvirt-gci/);
  }));

function meter(file: string, options: Partial<MeterOptions> = {}): Meter {
  return new Meter({ file, stage: "run", version: "1.2.3", warn: assert.fail, ...options });
}

/** What a run warns of whose counts go to this file. */
async function warningOf(file: string): Promise<string> {
  const warnings: string[] = [];
  await meter(file, { warn: (line) => warnings.push(line) }).end(null); // which does not fail
  return warnings.join("|");
}

Deno.test("a stage whose counts cannot be written does not fail, and says so", async () => {
  assert.match(
    await warningOf("/nonexistent/gci.prom"),
    /^Cannot count this stage in the metrics file "\/nonexistent\/gci\.prom"\nbecause: no such file.*\nWhat to do: Set metrics_file [^|]*$/,
  );
});

const FAILURES: readonly (readonly [unknown, result: string, cause: string])[] = [
  [new ScriptFailure(1), "job", "script"],
  [new BuildFailure({ what: "x", fault: "template" }), "job", "template"],
  [new SystemFailure({ what: "x", fault: "storage" }), "host", "storage"],
  [new SystemFailure({ what: "x", fault: "cancelled" }), "cancelled", "cancelled"],
  [new TypeError("a secret"), "host", "other"],
];

for (const [failure, result, cause] of FAILURES) {
  Deno.test(`a failure by ${cause} is counted as the result ${result}`, () =>
    withFile(async (file) => {
      await meter(file, { stage: "prepare" }).end(failure);
      const counted = [...await samplesIn(file)].filter(([, value]) => value !== 0);
      assert.deepEqual(counted, [
        ['libvirt_gci_build_info{version="1.2.3"}', 1],
        [`libvirt_gci_stages_total{stage="prepare",result="${result}"}`, 1],
        [`libvirt_gci_failures_total{cause="${cause}"}`, 1],
      ]);
    }));
}

Deno.test("the free space of a pool on this host is what others than root can write", async () => {
  const path = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  await using connection = await openTestHost();
  const xml = `<pool type="dir"><name>here</name><target><path>${path}</path></target></pool>`;
  {
    using pool = await StoragePool.define(connection, "here", xml);
    await pool.buildAndStart();
  }
  const config = merged(DEFAULT_CONFIG, { pools: { overlays: "here" } });
  const gauges = await measure(bareStage(connection, { config }).host, { disks: false });
  const space = fileSystemSpace(path);
  await Deno.remove(path);
  assert.equal(gauges?.poolCapacityBytes, space?.total);
  const more = (gauges?.poolAvailableBytes ?? 0) - (space?.available ?? 0);
  assert(Math.abs(more) < 2 * 1024 ** 3, `${more} bytes more`); // others write meanwhile
});

Deno.test("prepare's steps and machines are counted, in few calls of libvirt", () =>
  withFile(async (file) => {
    const calls: string[] = [];
    await using connection = await openTestHost({ onCall: (name) => calls.push(name) });
    await using guest = await TestGuest.start();
    using stage = testStage(connection, guest);
    const prepared = meter(file, { stage: "prepare" });
    await prepare(JOB, {}, toStage({ ...stage, onStep: prepared.onStep }));
    await prepare({ ...JOB, machine: "second" }, {}, stage);
    calls.length = 0;
    await prepared.measure(stage.host);
    assert(calls.length <= 6, calls.join());
    await prepared.end(null);
    const samples = await samplesIn(file);
    for (const phase of ["overlay", "start", "address", "ssh", "total"]) {
      const name = `libvirt_gci_prepare_phase_seconds_count{phase="${phase}"}`;
      assert.equal(samples.get(name), 1, name);
    }
    assert.equal(samples.get('libvirt_gci_machines{state="running"}'), 2);
    assert.equal(samples.get('libvirt_gci_machines{state="stopped"}'), 0);
    assert((samples.get("libvirt_gci_overlay_pool_capacity_bytes") ?? 0) > 1e9);
    assert(!samples.has("libvirt_gci_machines_disk_bytes"));

    using domain = await Domain.lookup(connection, "second");
    await domain.destroy();
    const collected = meter(file, { stage: "gc" });
    await collected.measure(stage.host);
    await collected.end(null);
    const later = await samplesIn(file);
    assert.equal(later.get('libvirt_gci_machines{state="running"}'), 1);
    assert.equal(later.get('libvirt_gci_machines{state="stopped"}'), 1);
    assert.equal(later.get("libvirt_gci_machines_disk_bytes"), await diskBytes());
    for (const machine of [JOB.machine, "second"]) await removeMachine(machine, stage);
    assert.deepEqual(stage.warnings, []);

    async function diskBytes(): Promise<number> {
      using pool = await StoragePool.lookup(connection, "libvirt-gci");
      let sum = 0;
      for (const name of await pool.volumeNames()) {
        if (name === "somebody.qcow2") continue;
        using volume = await pool.lookupVolume(name);
        sum += await volume.allocationBytes();
      }
      assert(sum > 0);
      return sum;
    }
  }));

Deno.test("a run is counted, but neither timed, nor is libvirt asked for anything", () =>
  withFile(async (file) => {
    const calls: string[] = [];
    await using connection = await openTestHost({ onCall: (name) => calls.push(name) });
    await using guest = await TestGuest.start();
    using stage = testStage(connection, guest);
    const ran = meter(file);
    await ran.measure(stage.host);
    assert.deepEqual(calls, []);
    await ran.end(null);
    const counted = [...await samplesIn(file)].filter(([, value]) => value !== 0);
    assert.deepEqual(counted, [['libvirt_gci_build_info{version="1.2.3"}', 1], [RUNS, 1]]);
  }));

Deno.test("who may write to the directory has no file of others written, or made readable", () =>
  withFile(async (file) => {
    const secret = `${file}.secret`;
    await Deno.writeTextFile(secret, "secret", { mode: 0o600 });
    await Deno.symlink(secret, `${file}.tmp`);
    await add(file, RUN);
    assert.equal((await samplesIn(file)).get(RUNS), 1);
    await Deno.symlink(secret, `${file}.lock`);
    await assert.rejects(add(file, RUN, 0), /Another process has kept/);
    await Deno.remove(`${file}.lock`);
    await Deno.symlink(`${file}.made`, `${file}.lock`);
    await assert.rejects(add(file, RUN, 0), /Another process has kept/);
    await assert.rejects(Deno.stat(`${file}.made`), Deno.errors.NotFound);
    assert.equal(await Deno.readTextFile(secret), "secret");
    assert.equal(((await Deno.stat(secret)).mode ?? 0) & 0o777, 0o600);
    await Promise.all([secret, `${file}.lock`].map((path) => Deno.remove(path)));
  }));

const IS_ROOT = Deno.uid() === 0;

for (
  const [mode, owner, why] of [
    [
      0o777,
      null,
      /: Other users can write the metrics: ".*" has the mode 777\nWhat to do: chmod go-w "/,
    ],
    [0o775, null, /has the mode 775\nWhat to do: chmod go-w "/],
    [0o1777, null, /has the mode 1777\nWhat to do: Use a directory for the metrics that only this/],
    [0o755, 65534, /belongs to the user 65534\nWhat to do: chown root "/],
  ] as const
) {
  const whose = owner === null ? "" : " of another user";
  Deno.test({
    name: `metrics go into no directory${whose} with the mode ${mode.toString(8)}`,
    ignore: owner !== null && !IS_ROOT,
    fn: () =>
      withFile(async (file) => {
        const directory = file.slice(0, file.lastIndexOf("/"));
        await Deno.chmod(directory, mode);
        if (owner !== null) await Deno.chown(directory, owner, owner);
        const warning = await warningOf(file);
        assert.match(warning, /^Cannot count this stage in the metrics file ".*gci\.prom"\n/);
        assert.match(warning, why);
        await assert.rejects(Deno.stat(file), Deno.errors.NotFound);
      }),
  });
}

Deno.test("nobody else can open the file that is locked", () =>
  withFile(async (file) => {
    await Deno.writeTextFile(file, "# TYPE libvirt_gci_damaged gauge\n");
    let mode: number | null = null;
    const warn = (): void => void ({ mode } = Deno.statSync(`${file}.lock`)); // it is locked now
    await addToMetricsFile(file, RUN, { warn });
    assert.equal((mode ?? 0) & 0o7777, 0o600);
  }));

Deno.test("the manual names every metric and every cause", async () => {
  const manual = await Deno.readTextFile(new URL("../../docs/metrics.md", import.meta.url));
  const text = await Deno.readTextFile(GOLDEN);
  const names = [...text.matchAll(/^# TYPE libvirt_gci_(\w+) (\w+)$/gm)]
    .map(([, name, type]) => type === "counter" ? `${name}_total` : name ?? "");
  for (const name of [...names, ...FAULTS]) assert(manual.includes(`\`${name}\``), name);
});

Deno.test("without the pool nothing is measured", async () => {
  await using connection = await openTestHost();
  await using guest = await TestGuest.start();
  using stage = testStage(connection, guest, { config: { pools: { overlays: "gone" } } });
  assert.equal(await measure(stage.host, { disks: false }), null);
});
