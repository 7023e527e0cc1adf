// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { cleanupAll } from "../../src/commands/cleanup.ts";
import { gc } from "../../src/commands/gc.ts";
import { SystemFailure } from "../../src/errors.ts";
import type { Job } from "../../src/job/job.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import {
  type MachineMetadata,
  type Owner,
  readMetadata,
  writeMetadata,
} from "../../src/machine/metadata.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { hostMark, processMark } from "../../src/machine/process.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { run } from "../../src/machine/run_script.ts";
import { volumeName } from "../../src/machine/storage/volume_names.ts";
import { createRawVolume, removeVolume } from "../../src/machine/storage/volumes.ts";
import { sweep, whyUnneeded } from "../../src/machine/unneeded.ts";
import { makerOf } from "../../src/machine/warm/warm_image.ts";
import { sleep } from "../../src/wait.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { inventory, openTestHost } from "../fakes/test_host.ts";
import {
  JOB,
  script,
  type TestStage,
  testStage,
  type TestStageOptions,
  toStage,
} from "../fakes/test_stage.ts";

/** Gives the test a host and a stage, and sees that no handle, machine or key is left. */
async function withStage(
  test: (stage: TestStage) => Promise<void>,
  options: TestStageOptions = {},
): Promise<void> {
  const connection = await openTestHost();
  const before = await inventory(connection);
  {
    await using guest = await TestGuest.start();
    using stage = testStage(connection, guest, options);
    await test(stage);
    await removeMachine(JOB.machine, stage);
  }
  assert.deepEqual(await inventory(connection), before);
  assert.equal(await connection.close(), 0, "a handle is left");
}

async function makeVolume(connection: Connection, pool: string, name: string): Promise<void> {
  using handle = await StoragePool.lookup(connection, pool);
  using _ = await createRawVolume(handle, name, 1);
}

async function hasDomain(connection: Connection, name: string): Promise<boolean> {
  using domain = await Domain.find(connection, name);
  return domain !== null;
}

/** Makes the job's machine, as one whose metadata says this. */
async function makeMachine(stage: TestStage, differences: Partial<MachineMetadata>): Promise<void> {
  await prepare({ ...JOB, attemptDir: "/nonexistent/attempt" }, {}, stage);
  using domain = await Domain.lookup(stage.connection, JOB.machine);
  const metadata = await readMetadata(domain);
  assert(metadata);
  await writeMetadata(domain, { ...metadata, ...differences });
  stage.lines.length = 0;
}

function ago(hours: number): number {
  return Date.now() - hours * 3600_000;
}

/** The mark of a process that has ended. */
async function deadMark(): Promise<string> {
  const child = new Deno.Command("sleep", { args: ["100"] }).spawn();
  const mark = processMark(child.pid);
  child.kill("SIGKILL");
  await child.status;
  return mark ?? "";
}

Deno.test("gc leaves a machine while its runner runs, and removes it when that was killed", () =>
  withStage(async (stage) => {
    const runner = new Deno.Command("sleep", { args: ["100"] }).spawn();
    await makeMachine(stage, { runner: processMark(runner.pid) ?? "" });
    await gc({}, stage);
    assert(await hasDomain(stage.connection, JOB.machine));
    assert.deepEqual(stage.lines, []);
    runner.kill("SIGKILL");
    await runner.status;
    await gc({}, stage);
    assert(!await hasDomain(stage.connection, JOB.machine));
    assert.match(
      stage.lines.join("\n"),
      /^Removed "gitlab-proj-.*" \(domain, 3 volumes\): its runner has ended, and the attempt's/,
    );
  }));

Deno.test("prepare writes its caller down as the runner, and gc leaves the machine", () =>
  withStage(async (stage) => {
    await makeMachine(stage, {});
    using domain = await Domain.lookup(stage.connection, JOB.machine);
    assert.equal((await readMetadata(domain))?.runner, processMark(Deno.ppid));
    await gc({}, stage);
    assert(await domain.isActive());
  }));

Deno.test("the attempt's directory alone keeps a machine, and its end ends that", () =>
  withStage(async (stage) => {
    const attemptDir = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
    await makeMachine(stage, { attemptDir, runner: await deadMark() });
    await gc({}, stage);
    assert(await hasDomain(stage.connection, JOB.machine));
    await Deno.remove(attemptDir, { recursive: true });
    await gc({}, stage);
    assert(!await hasDomain(stage.connection, JOB.machine));
  }));

Deno.test("gc removes the machine of a runner that was killed, though the attempt's directory is there", () =>
  withStage(async (stage) => {
    const attemptDir = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
    const runner = new Deno.Command("sleep", { args: ["100"] }).spawn();
    const of = { attemptDir, runner: processMark(runner.pid) ?? "", isRunner: true };
    await makeMachine(stage, of);
    await gc({}, stage);
    assert(await hasDomain(stage.connection, JOB.machine));
    runner.kill("SIGKILL");
    await runner.status;
    await gc({}, stage);
    assert(!await hasDomain(stage.connection, JOB.machine));
    assert.match(
      stage.lines.join("\n"),
      /^Removed .* \(domain, 3 volumes\): its runner has ended$/,
    );
    await Deno.remove(attemptDir);
  }));

Deno.test("prepare calls its caller the runner only if that one called config too", () =>
  withStage(async (stage) => {
    const { connection } = stage;
    const attemptDir = "/nonexistent/attempt";
    const isRunner = async (differences: Partial<Job>): Promise<boolean | undefined> => {
      await prepare({ ...JOB, attemptDir, ...differences }, {}, stage);
      using domain = await Domain.lookup(connection, JOB.machine);
      const metadata = await readMetadata(domain);
      await removeMachine(JOB.machine, stage);
      return metadata?.isRunner;
    };
    const caller = processMark(Deno.ppid);
    assert.equal(await isRunner({ configCaller: caller }), true);
    assert.equal(await isRunner({ configCaller: processMark(Deno.pid) }), false);
    assert.equal(await isRunner({ configCaller: null }), false); // of an older config
    assert.equal(await isRunner({ configCaller: caller, attemptDir: null }), false); // by hand
  }));

Deno.test("gc removes the key of a machine from its attempt's directory, and nothing else there", () =>
  withStage(async (stage) => {
    const attemptDir = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
    const key = `${attemptDir}/${JOB.machine}.libvirt-gci-key`;
    await Deno.writeTextFile(key, "key");
    await Deno.writeTextFile(`${attemptDir}/response.json`, "{}");
    await makeMachine(stage, { attemptDir, deadline: ago(1) });
    await gc({}, stage);
    assert.deepEqual([...Deno.readDirSync(attemptDir)].map(({ name }) => name), ["response.json"]);
    assert.equal(((await Deno.stat(attemptDir)).mode ?? 0) & 0o777, 0o700);
    await Deno.remove(attemptDir, { recursive: true });
  }));

/** A job's owner, of this host and with a runner that is gone. */
const OWNER: Omit<Owner, "host"> = {
  job: "1",
  project: "p",
  created: ago(5),
  deadline: ago(-1),
  attemptDir: "/nonexistent/attempt",
  runner: "",
  isRunner: false,
};

async function why(differences: Partial<Owner>): Promise<string | null> {
  return await whyUnneeded({ ...OWNER, host: await hostMark(), ...differences });
}

Deno.test("another process with the runner's number is not the runner", async () => {
  const mark = processMark(Deno.pid) ?? "";
  assert.match(mark, /^\d+ \d+ [0-9a-f-]{36}$/);
  assert.equal(await why({ runner: mark }), null);
  const [pid, start, boot] = mark.split(" ");
  assert.match(
    await why({ runner: `${pid} ${Number(start) - 1} ${boot}` }) ?? "",
    /runner has ended/,
  );
  assert.match(await why({ runner: `${pid} ${start} other-boot` }) ?? "", /runner has ended/);
});

Deno.test("once the runner has removed the attempt's directory, its running is no reason", async () => {
  const attemptDir = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const runner = processMark(Deno.pid) ?? "";
  assert.equal(await why({ runner, attemptDir }), null);
  await Deno.remove(attemptDir);
  assert.equal(await why({ runner, attemptDir }), "its attempt has ended");
  assert.equal(await why({ runner, attemptDir: "" }), null);
});

Deno.test("the end of the runner ends its machine, where it is known to be the runner", async () => {
  const attemptDir = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const ended = { attemptDir, runner: await deadMark() };
  assert.equal(await why(ended), null);
  assert.equal(await why({ ...ended, isRunner: true }), "its runner has ended");
  assert.equal(await why({ ...ended, isRunner: true, host: "0123456789abcdef" }), null);
  const running = { attemptDir, runner: processMark(Deno.pid) ?? "" };
  assert.equal(await why({ ...running, isRunner: true }), null);
  const keptUntil = ago(-1);
  const kept = { ...OWNER, ...ended, isRunner: true, host: await hostMark(), keptUntil };
  assert.equal(await whyUnneeded(kept), null);
  await Deno.remove(attemptDir);
});

/** Runs the rest where /proc shows no process but its own (hidepid, proc(5)). */
const WITH_HIDDEN_PROCESSES = `
mount -t proc -o hidepid=invisible,gid=65534 proc /proc &&
exec setpriv --bounding-set=-sys_ptrace --inh-caps=-sys_ptrace "$@"
`;

/** What {@linkcode why} gives for such an owner where it cannot see the runner's process. */
async function whyUnseen(differences: Partial<Owner>): Promise<string | null> {
  const owner = JSON.stringify({ ...OWNER, host: await hostMark(), ...differences });
  const code = `
    const { processMark } = await import("${import.meta.resolve(PROCESS)}");
    const { whyUnneeded } = await import("${import.meta.resolve(UNNEEDED)}");
    const sees = processMark(${Deno.pid}) !== null;
    console.log(JSON.stringify({ sees, why: await whyUnneeded(${owner}) }));`;
  const args = ["--mount", "sh", "-c", WITH_HIDDEN_PROCESSES, "sh", Deno.execPath(), "eval", code];
  const { stdout, stderr } = await new Deno.Command("unshare", { args }).output();
  const text = new TextDecoder().decode(stdout);
  assert.match(text, /"sees":false/, new TextDecoder().decode(stderr));
  return JSON.parse(text).why;
}

const PROCESS = "../../src/machine/process.ts";
const UNNEEDED = "../../src/machine/unneeded.ts";

Deno.test({
  name: "a runner whose process this user cannot see is not gone",
  ignore: Deno.uid() !== 0,
  fn: async () => {
    const attemptDir = "/nonexistent/attempt";
    const running = { attemptDir, runner: processMark(Deno.pid) ?? "" };
    assert.equal(await whyUnseen(running), null);
    const sure = { ...running, attemptDir: "/", isRunner: true };
    assert.equal(await whyUnseen(sure), null);
    assert.equal(await whyUnseen({ ...sure, runner: await deadMark() }), "its runner has ended");
  },
});

/** Has a /tmp of its own with the directory $1 in it, until the first line comes; ends with the second. */
const OWN_TMP = `
mount -t tmpfs tmpfs /tmp && mkdir -m 700 "$1" && echo made
read -r line; rmdir "$1" && echo removed
read -r line
`;

Deno.test({
  name: "a directory in the runner's own /tmp keeps the machine as long as it is there",
  ignore: Deno.uid() !== 0,
  fn: async () => {
    const attemptDir = `/tmp/libvirt-gci-test-${crypto.randomUUID()}`;
    const args = ["--mount", "sh", "-c", OWN_TMP, "sh", attemptDir];
    const child = new Deno.Command("unshare", { args, stdin: "piped", stdout: "piped" }).spawn();
    const stdin = child.stdin.getWriter();
    const stdout = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
    const goOn = () => stdin.write(new TextEncoder().encode("\n"));
    assert.equal((await stdout.read()).value, "made\n");
    const runner = processMark(child.pid) ?? "";
    assert.equal(await why({ runner, attemptDir }), null);
    await goOn();
    assert.equal((await stdout.read()).value, "removed\n");
    assert.equal(await why({ runner, attemptDir }), "its attempt has ended");
    await goOn();
    assert((await stdout.read()).done);
    await child.status;
    await stdin.close().catch(() => {}); // who read it has ended
    assert.match(await why({ runner, attemptDir }) ?? "", /runner has ended/);
  },
});

Deno.test("a process that is dead and not yet buried has no mark, nor has init", async () => {
  const command = new Deno.Command("sh", {
    args: ["-c", "sleep 0 & echo $!; exec sleep 100"], // which never asks how the child ended
    stdout: "piped",
  });
  const parent = command.spawn();
  const reader = parent.stdout.getReader();
  const zombie = Number(new TextDecoder().decode((await reader.read()).value));
  for (let i = 0; i < 100 && processMark(zombie) !== null; i++) {
    await sleep(20);
  }
  assert.equal(processMark(zombie), null);
  assert.equal(processMark(1), null);
  parent.kill("SIGKILL");
  await reader.cancel();
  await parent.status;
});

Deno.test("a deadline that has passed ends a machine, whoever is still there", async () => {
  const runner = processMark(Deno.pid) ?? "";
  assert.equal(await why({ runner, deadline: ago(-0.1) }), null);
  assert.equal(await why({ runner, deadline: ago(3) }), "its deadline passed 3 h ago");
});

Deno.test("of another host's machines only the deadline counts", async () => {
  for (const host of ["0123456789abcdef", ""]) {
    assert.equal(await why({ host }), null);
    assert.match(await why({ host, deadline: ago(1) }) ?? "", /deadline passed/);
  }
});

Deno.test("a person's machine is needed until somebody removes it", async () => {
  assert.equal(await why({ attemptDir: "", deadline: null, created: ago(10_000) }), null);
});

Deno.test("--older-than takes a person's machine by when it was made, and only then", () =>
  withStage(async (stage) => {
    await makeMachine(stage, { attemptDir: "", deadline: null, runner: "", created: ago(2) });
    await gc({}, stage);
    await gc({ olderThanSeconds: 3 * 3600 }, stage);
    assert(await hasDomain(stage.connection, JOB.machine));
    await gc({ olderThanSeconds: 3600 }, stage);
    assert(!await hasDomain(stage.connection, JOB.machine));
    assert.match(stage.lines.join("\n"), /it was created 2 h ago/);
  }));

Deno.test("--older-than takes a running job's machine too", () =>
  withStage(async (stage) => {
    await makeMachine(stage, { created: ago(2) });
    await gc({ olderThanSeconds: 3600 }, stage);
    assert(!await hasDomain(stage.connection, JOB.machine));
  }));

const LEFT = [
  ["libvirt-gci", "gone-1.overlay.libvirt-gci"],
  ["libvirt-gci", "gone-1.guest.libvirt-gci"],
  ["libvirt-gci", "gone-2.guest.libvirt-gci"],
  ["libvirt-gci", "a.seed.libvirt-gci.credential.libvirt-gci"],
  ["base_imgs", "gone-3.overlay.libvirt-gci"],
] as const;

Deno.test("gc removes volumes of ours that nothing explains, in both pools, and no others", () =>
  withStage(async (stage) => {
    const { connection } = stage;
    const theirs = [
      "libvirt-gci",
      "x.libvirt-gci",
      "x.overlay.libvirt-gci.qcow2",
      "-x.seed.libvirt-gci",
    ];
    for (const name of theirs) await makeVolume(connection, "libvirt-gci", name);
    const before = await inventory(connection);
    for (const [pool, name] of LEFT) await makeVolume(connection, pool, name);
    await gc({}, stage);
    assert.deepEqual(await inventory(connection), before);
    assert.equal(stage.lines.length, 4);
    assert.match(stage.lines.join("\n"), /"gone-1" \(2 volumes\): it has no owner/);
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    for (const name of theirs) {
      using volume = await pool.lookupVolume(name);
      await volume.delete();
    }
  }));

Deno.test("gc --dry-run says what it would remove, and removes nothing", () =>
  withStage(async (stage) => {
    await makeVolume(stage.connection, "libvirt-gci", "gone.overlay.libvirt-gci");
    const before = await inventory(stage.connection);
    await gc({ dryRun: true }, stage);
    assert.deepEqual(await inventory(stage.connection), before);
    assert.match(stage.lines.join("\n"), /^Would remove "gone" \(1 volume\): it has no owner/);
    await gc({}, stage);
  }));

Deno.test("gc goes on where it cannot remove something, and says all of it in the end", () =>
  withStage(async (stage) => {
    const { connection } = stage;
    await makeVolume(connection, "libvirt-gci", "gone.overlay.libvirt-gci");
    await makeVolume(connection, "libvirt-gci", "somebody.overlay.libvirt-gci"); // a foreign domain's name
    await assert.rejects(gc({}, stage), (error) => {
      assert(error instanceof SystemFailure);
      assert.match(error.message, /Cannot remove a machine no longer needed/);
      assert.match(error.details ?? "", /"somebody" was not created by libvirt-gci/);
      return true;
    });
    assert(await hasDomain(connection, "somebody"));
    assert.match(stage.lines.join("\n"), /^Removed "gone"/);
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    using volume = await pool.lookupVolume("somebody.overlay.libvirt-gci");
    await volume.delete();
  }));

Deno.test("gc removes keys without a machine, names those that it cannot, and leaves other files", () =>
  withStage(async (stage) => {
    const { keys: keyDirectory } = stage.directories;
    await Deno.writeTextFile(`${keyDirectory}/gone.libvirt-gci-key`, "key");
    await Deno.writeTextFile(`${keyDirectory}/other-key`, "key");
    await Deno.mkdir(`${keyDirectory}/stuck.libvirt-gci-key/full`, { recursive: true });
    await assert.rejects(gc({}, stage), (error) => {
      assert(error instanceof SystemFailure);
      assert.match(error.details ?? "", /stuck.libvirt-gci-key/);
      return true;
    });
    assert.match(stage.lines.join("\n"), /^Removed "gone" \(key\): it has no owner$/);
    const left = (await Array.fromAsync(Deno.readDir(keyDirectory))).map(({ name }) => name).sort();
    assert.deepEqual(left, ["other-key", "stuck.libvirt-gci-key"]);
    for (const name of left) await Deno.remove(`${keyDirectory}/${name}`, { recursive: true });
  }));

Deno.test("two gcs at once remove everything once, and neither fails", () =>
  withStage(async (stage) => {
    const before = await inventory(stage.connection);
    for (let i = 0; i < 10; i++) {
      await makeVolume(stage.connection, "libvirt-gci", `gone-${i}.overlay.libvirt-gci`);
    }
    await makeMachine(stage, { deadline: ago(1) });
    await Promise.all([gc({}, stage), gc({}, stage), gc({}, stage)]);
    assert.deepEqual(await inventory(stage.connection), before);
  }));

Deno.test("gc leaves the machine of a prepare alone, at every moment of it", () =>
  withStage(async (stage) => {
    const attemptDir = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
    const prepared = prepare({ ...JOB, attemptDir }, {}, stage);
    let done = false;
    prepared.finally(() => done = true).catch(() => {});
    const quiet = toStage({ ...stage, log: (line: string) => assert.fail(line) });
    while (!done) await gc({}, quiet);
    await prepared;
    await run(JOB.machine, script("echo here"), stage);
    assert.equal(stage.output.stdout, "here\n");
    await Deno.remove(attemptDir);
  }));

Deno.test("prepare removes what nobody needs, says so in one line and names nobody", () =>
  withStage(async (stage) => {
    await makeVolume(stage.connection, "libvirt-gci", "gitlab-secret-1.overlay.libvirt-gci");
    await makeVolume(stage.connection, "libvirt-gci", "gitlab-secret-2.seed.libvirt-gci");
    await prepare(JOB, {}, stage);
    const [first, ...others] = stage.lines;
    assert.equal(first, "Removed 2 machines no longer needed");
    assert.doesNotMatch(others.join(), /Removed|secret/);
    assert.deepEqual(stage.warnings, []);
  }));

/** The job's machine in another attempt, as GitLab Runner has it. */
const OTHER = { ...JOB, machine: JOB.machine.replace(/.{10}$/, "fedcba9876") };

/** Has the test with a hundred machines, all of which a prepare may be making. */
async function inCrowd(connection: Connection, test: () => Promise<void>): Promise<void> {
  const names = Array.from({ length: 100 }, (_, i) => `gitlab-crowd-${i}.owner.libvirt-gci`);
  for (const name of names) await makeVolume(connection, "libvirt-gci", name);
  await test();
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  for (const name of names) await removeVolume(pool, name);
}

Deno.test("prepare removes what an earlier attempt at its job left, among many others", () =>
  withStage(async (stage) => {
    const { connection } = stage;
    const attemptDir = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
    await prepare({ ...OTHER, attemptDir }, {}, stage);
    await Deno.remove(attemptDir); // as the runner does, though cleanup failed
    await inCrowd(connection, async () => {
      stage.lines.length = 0;
      await prepare(JOB, {}, stage);
      assert.equal(stage.lines[0], "Removed a machine no longer needed");
      assert(!await hasDomain(connection, OTHER.machine));
      assert(await hasDomain(connection, JOB.machine));
    });
  }));

Deno.test("prepare leaves a machine of the same name and number whose attempt goes on", () =>
  withStage(async (stage) => {
    const attemptDir = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
    await prepare({ ...OTHER, attemptDir }, {}, stage); // of another GitLab server, say
    await prepare(JOB, {}, stage);
    assert(await hasDomain(stage.connection, OTHER.machine));
    await removeMachine(OTHER.machine, stage);
    await Deno.remove(attemptDir);
  }));

Deno.test("prepare removes no machine that somebody needs, and says nothing then", () =>
  withStage(async (stage) => {
    await makeMachine(stage, { attemptDir: "", deadline: null, created: ago(10_000) });
    await sweep("next", stage);
    assert(await hasDomain(stage.connection, JOB.machine));
    assert.deepEqual([stage.lines, stage.warnings], [[], []]);
  }));

Deno.test("what prepare cannot remove is a warning", () =>
  withStage(async (stage) => {
    await makeVolume(stage.connection, "libvirt-gci", "somebody.overlay.libvirt-gci");
    await prepare(JOB, {}, stage);
    assert.equal(stage.warnings.length, 1);
    assert.match(stage.warnings[0] ?? "", /Could not remove a machine .* libvirt-gci gc/);
    using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
    using volume = await pool.lookupVolume("somebody.overlay.libvirt-gci");
    await volume.delete();
  }));

Deno.test("cleanup --all asks how many machines and whose, and removes them after a yes", () =>
  withStage(async (stage) => {
    const before = await inventory(stage.connection);
    await makeMachine(stage, {});
    await makeVolume(stage.connection, "libvirt-gci", "gone.overlay.libvirt-gci");
    const asked: string[] = [];
    const answer = (yes: boolean) => (question: string) => {
      asked.push(question);
      return Promise.resolve(yes);
    };
    await cleanupAll({ yes: false, ask: answer(false) }, stage);
    assert(await hasDomain(stage.connection, JOB.machine));
    await assert.rejects(cleanupAll({ yes: false, ask: null }, stage), /no terminal to ask on/);
    assert(await hasDomain(stage.connection, JOB.machine));
    await cleanupAll({ yes: false, ask: answer(true) }, stage);
    assert.deepEqual(await inventory(stage.connection), before);
    const question = "Remove 2 machines, 1 of them with running jobs?";
    assert.deepEqual(asked, [question, question]);
    await cleanupAll({ yes: false, ask: null }, stage);
    assert.equal(stage.lines.at(-1), "There is no machine");
  }));

Deno.test("cleanup --all --yes asks nobody", () =>
  withStage(async (stage) => {
    await makeMachine(stage, { attemptDir: "" });
    await cleanupAll({ yes: true, ask: () => assert.fail("asked") }, stage);
    assert(!await hasDomain(stage.connection, JOB.machine));
  }));

Deno.test("gc removes half a warm image, but not while somebody makes it", () =>
  withStage(async (stage) => {
    const { connection } = stage;
    const maker = volumeName(await makerOf("debian-12"), "owner");
    for (const name of [volumeName("debian-12", "warm-disk", "0123456789"), maker]) {
      await makeVolume(connection, "libvirt-gci", name);
    }
    await gc({}, stage);
    assert.deepEqual(stage.lines, []);
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    await removeVolume(pool, maker);
    await gc({ dryRun: true }, stage);
    await gc({}, stage);
    const words = 'a warm image of "debian-12": it is incomplete, or there is a newer one';
    assert.deepEqual(stage.lines, [`Would remove ${words}`, `Removed ${words}`]);
  }));
