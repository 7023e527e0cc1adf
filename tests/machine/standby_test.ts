// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { keptVariables } from "../../src/cli/background.ts";
import { refillArguments } from "../../src/cli/refill.ts";
import { cleanupAll } from "../../src/commands/cleanup.ts";
import { gc } from "../../src/commands/gc.ts";
import { listMachines } from "../../src/commands/list.ts";
import { findMaster } from "../../src/guest/master/client.ts";
import { controlSocket } from "../../src/guest/master/control_socket.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { domainName } from "../../src/machine/lookup.ts";
import type { MachineMetadata } from "../../src/machine/metadata.ts";
import { reserveName } from "../../src/machine/name.ts";
import { ownProcess } from "../../src/machine/owner.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { processMark } from "../../src/machine/process.ts";
import { waitForAdmission } from "../../src/machine/queue/admission.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { fillStandbys, removeStandbys } from "../../src/machine/standby/fill.ts";
import {
  acquireStandby,
  assignmentsIn,
  assignStandby,
  isStandbyName,
  markWaiting,
  newStandbyName,
  standbyKind,
  waitingIn,
} from "../../src/machine/standby/waiting.ts";
import { findWanted, unwantedOf, type WantedStandbys } from "../../src/machine/standby/wanted.ts";
import { findTemplate } from "../../src/machine/storage/template.ts";
import { isOurVolume, machineOfVolume } from "../../src/machine/storage/volume_names.ts";
import { createRawVolume, removeVolume } from "../../src/machine/storage/volumes.ts";
import { lookupNeed, sweep } from "../../src/machine/unneeded.ts";
import { removeWarmImage, warmOrigin, warmVolumes } from "../../src/machine/warm/warm_image.ts";
import { chooseTemplate, templatesToWait } from "../../src/policy/template_choice.ts";
import { parseConfig } from "../../src/settings/read.ts";
import { type Config, DEFAULT_CONFIG, type MachineSettings } from "../../src/settings/settings.ts";
import { sleep } from "../../src/wait.ts";
import { type Differences, merged } from "../fakes/merged.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import { makeAttemptDir, spawnMaster } from "../fakes/test_master.ts";
import {
  changeMetadata,
  JOB,
  type TestStage,
  testStage,
  type TestStageOptions,
  toStage,
} from "../fakes/test_stage.ts";

const KIND = "0123456789abcdef";
const ENDED = { runner: "1 1 0", attemptDir: "" };

/** Gives the test a stage, and sees that no domain, volume or handle is left. */
async function withStage(
  test: (stage: TestStage, guest: TestGuest) => Promise<void>,
  options: TestStageOptions = {},
): Promise<void> {
  const connection = await openTestHost();
  const before = [await domains(connection), await volumes(connection)];
  {
    await using guest = await TestGuest.start();
    using stage = testStage(connection, guest, options);
    await test(stage, guest);
  }
  assert.deepEqual([await domains(connection), await volumes(connection)], before);
  assert.equal(await connection.close(), 0, "a handle is left");
}

async function domains(connection: Connection): Promise<string[]> {
  using found = await Domain.listActive(connection);
  return found.map(({ name }) => name).sort();
}

async function volumes(connection: Connection): Promise<string[]> {
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  return (await pool.volumeNames()).sort();
}

/** A machine that waits; libvirt's test driver resumes none, so it was booted. */
async function makeStandby(
  stage: TestStage,
  differences: Partial<MachineMetadata> = ENDED,
  kind = KIND,
): Promise<string> {
  const name = newStandbyName();
  await prepare({ ...JOB, machine: name }, {}, stage);
  await changeMetadata(stage.connection, name, differences);
  using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
  await markWaiting(pool, { name, kind });
  stage.lines.length = 0;
  return name;
}

/** What prepare does to have it, step by step. */
async function take(
  stage: TestStage,
  standby: string,
  differences: Partial<MachineMetadata> = {},
): Promise<void> {
  using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
  await assignStandby(pool, JOB.machine, standby);
  assert(await acquireStandby(pool, { name: standby, kind: KIND }));
  await changeMetadata(stage.connection, standby, { machine: JOB.machine, ...differences });
}

Deno.test("the names of volumes tell who waits and who took whom", () => {
  const name = newStandbyName();
  assert(isStandbyName(name));
  assert(!isStandbyName(JOB.machine) && !isStandbyName("standby-filler"));
  const waiting = `${name}.${KIND}.waiting.libvirt-gci`;
  for (const machine of ["m", "m.overlay", "m.entry", "a.b-c_d"]) {
    const assigned = `${machine}.${name}.assigned.libvirt-gci`;
    assert.deepEqual(assignmentsIn([waiting, assigned, "m.owner.libvirt-gci"]), [{
      machine,
      standby: name,
    }]);
    assert.deepEqual(waitingIn([assigned, waiting]), [{ name, kind: KIND }]);
    assert.equal(machineOfVolume(assigned), machine);
    assert(isOurVolume(assigned));
  }
  assert.equal(machineOfVolume(waiting), name);
});

/** Another value than the default of each setting of a machine. */
const OTHER_SETTINGS: MachineSettings = {
  domainType: "qemu",
  vcpus: 3,
  memoryMib: 4096,
  diskGib: 9,
  nested: true,
  keepMinutes: 9,
  limits: { vcpus: 9, memoryMib: 9999, diskGib: 9, keepMinutes: 9, nested: true },
  machineType: "pc",
  firmware: "efi",
  start: "warm",
  standby: 9,
  cpu: { mode: "maximum", shares: 9 },
  disk: { mibPerSecond: 9, iops: 9 },
  network: {
    name: "other",
    isolate: false,
    hostPorts: ["tcp/80"],
    hostAddresses: ["10.0.0.1"],
    blocked: ["10.0.0.0/8"],
    mibPerSecond: 9,
  },
  ssh: { login: "systemd", user: "root", port: 2222, key: "/key" },
  guest: { shell: "sh", buildsDir: "/builds", cacheDir: "/cache" },
  timeouts: { addressSeconds: 9, sshSeconds: 9 },
};

/** Each value of an object, and of those in it, as the change of this value alone. */
function changesOf(values: object): [string, object][] {
  return Object.entries(values).flatMap(([key, value]) =>
    typeof value === "object" && value !== null && !Array.isArray(value)
      ? changesOf(value).map(([below, change]): [string, object] => {
        return [`${key}.${below}`, { [key]: change }];
      })
      : [[key, { [key]: value }]]
  );
}

/** The settings that do not make a machine another one. */
const NOT_OF_THE_MACHINE: readonly string[] = [
  "keepMinutes",
  "limits.vcpus",
  "limits.memoryMib",
  "limits.diskGib",
  "limits.keepMinutes",
  "limits.nested",
  "start",
  "standby",
  "ssh.key",
  "guest.buildsDir",
  "guest.cacheDir",
  "timeouts.addressSeconds",
  "timeouts.sshSeconds",
];

Deno.test("a machine waits for the jobs that would get the same, and for no others", async () => {
  const volume = { pool: "base_imgs", volume: "debian-12.qcow2", path: "/debian-12.qcow2" };
  const template = { ...volume, format: "qcow2", capacityBytes: 1024, modified: "1" };
  const kind = await standbyKind(template, DEFAULT_CONFIG.machine);
  assert.match(kind, /^[0-9a-f]{16}$/);
  const replaced = { ...template, modified: "2" };
  assert.notEqual(await standbyKind(replaced, DEFAULT_CONFIG.machine), kind);
  const same: string[] = [];
  for (const [key, change] of changesOf(OTHER_SETTINGS)) {
    const settings = merged(DEFAULT_CONFIG.machine, change);
    assert.notDeepEqual(settings, DEFAULT_CONFIG.machine, `${key} is no other`);
    if (await standbyKind(template, settings) === kind) same.push(key);
  }
  assert.deepEqual(same.sort(), NOT_OF_THE_MACHINE.toSorted());
});

Deno.test("of many who want the same machine, one gets it", () =>
  withStage(async (stage) => {
    using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
    for (let round = 0; round < 20; round++) {
      const standby = { name: newStandbyName(), kind: KIND };
      await markWaiting(pool, standby);
      const got = await Promise.all(
        Array.from({ length: 8 }, () => acquireStandby(pool, standby)),
      );
      assert.equal(got.filter((isOurs) => isOurs).length, 1);
    }
  }));

Deno.test("a machine that waits is listed, no gc takes it for lost, and it goes when unwanted", () =>
  withStage(async (stage) => {
    const standby = await makeStandby(stage);
    assert.deepEqual(
      (await listMachines(stage)).map(({ machine, state, why }) => [machine, state, why]),
      [[standby, "standby", null]],
    );
    await sweep("next", stage);
    assert((await domains(stage.connection)).includes(standby));
    await gc({ dryRun: true }, stage);
    await gc({}, stage);
    const words = `"${standby}": standby machine that matches no setting any more`;
    assert.deepEqual(stage.lines, [`Would remove ${words}`, `Removed ${words}`]);
  }));

Deno.test("a machine that was made to wait and does not is lost once its maker is gone", () =>
  withStage(async (stage) => {
    const standby = await makeStandby(stage, { attemptDir: "", runner: "" });
    using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
    await acquireStandby(pool, { name: standby, kind: KIND });
    await gc({}, stage); // by this metadata, a person has it
    assert.deepEqual(stage.lines, []);
    await changeMetadata(stage.connection, standby, ENDED);
    await gc({}, stage);
    assert.deepEqual(stage.lines, [
      `Removed "${standby}" (domain, 3 volumes): the process that was creating it has ended`,
    ]);
  }));

Deno.test("gc leaves a machine that begins to wait while its maker ends, at every moment", () =>
  withStage(async (stage) => {
    const name = await makeStandby(stage);
    const { connection } = stage;
    const { call } = connection;
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    for (let moment = 1, calls = 1; moment <= calls + 1; moment++) {
      await acquireStandby(pool, { name, kind: KIND }); // so it does not wait yet
      const maker = new Deno.Command("sleep", { args: ["100"] }).spawn();
      await changeMetadata(stage.connection, name, {
        attemptDir: "",
        runner: processMark(maker.pid) ?? "",
      });
      const ends = async (): Promise<void> => {
        connection.call = call;
        await markWaiting(pool, { name, kind: KIND });
        maker.kill("SIGKILL");
        await maker.status;
      };
      calls = 0;
      connection.call = (async (...args: Parameters<typeof call>) => {
        const result = await call.apply(connection, args);
        if (++calls === moment) await ends();
        return result;
      }) as typeof call;
      const { why } = await lookupNeed({ name, volumes: [] }, stage.host);
      assert.equal(why, null, `after call ${moment} of libvirt`);
      if (calls < moment) await ends();
    }
    await removeMachine(name, stage);
  }));

Deno.test("a machine that is just being taken over is not lost", () =>
  withStage(async (stage) => {
    const standby = await makeStandby(stage);
    using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
    await prepare({ ...JOB, machine: "taker" }, {}, stage); // whose owner's volume tells that it lives
    await assignStandby(pool, "taker", standby);
    await acquireStandby(pool, { name: standby, kind: KIND });
    await gc({}, stage);
    assert((await domains(stage.connection)).includes(standby));
    await removeMachine("taker", stage); // which never got it
    assert((await domains(stage.connection)).includes(standby));
    await gc({}, stage);
  }));

Deno.test("a machine goes by its job's name once it has one, to the end", () =>
  withStage(async (stage) => {
    const standby = await makeStandby(stage);
    assert.equal(await domainName(JOB.machine, stage.host), JOB.machine);
    await take(stage, standby, { job: "4242", runner: "" });
    assert.equal(await domainName(JOB.machine, stage.host), standby);
    assert.equal(await domainName(standby, stage.host), standby);
    const listed = (await listMachines(stage)).map((it) => [it.machine, it.domain, it.job]);
    assert.deepEqual(listed, [[JOB.machine, standby, "4242"]]);
    const asked: string[] = [];
    const ask = (question: string) => Promise.resolve(asked.push(question) < 0);
    await cleanupAll({ yes: false, ask }, stage);
    assert.deepEqual(asked, ["Remove 1 machine, 1 of them with running jobs?"]);
    stage.lines.length = 0;
    assert(await removeMachine(JOB.machine, stage));
    assert.deepEqual(stage.lines, [`Removed the machine "${JOB.machine}"`]);
  }));

Deno.test("gc counts what a job's machine took over with it, and says it in one line", () =>
  withStage(async (stage) => {
    using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
    for (const machine of [JOB.machine, "vm"]) { // one comes before the other, and one after it
      const standby = await makeStandby(stage);
      await assignStandby(pool, machine, standby);
      await acquireStandby(pool, { name: standby, kind: KIND });
      await changeMetadata(stage.connection, standby, { machine, ...ENDED });
      await gc({ dryRun: true }, stage);
      await gc({}, stage);
      const words = `"${machine}" (domain, 4 volumes): the process that was creating it has ended`;
      assert.deepEqual(stage.lines, [`Would remove ${words}`, `Removed ${words}`]);
    }
  }));

Deno.test("a machine whose guest has powered off is removed by its job's name", () =>
  withStage(async (stage) => {
    const standby = await makeStandby(stage);
    await take(stage, standby);
    {
      using domain = await Domain.lookup(stage.connection, standby);
      await domain.destroy();
    }
    assert.equal(await domainName(JOB.machine, stage.host), standby);
    assert(await removeMachine(JOB.machine, stage));
  }));

Deno.test("cleanup of a job that another was faster than leaves the other's machine alone", () =>
  withStage(async (stage) => {
    const standby = await makeStandby(stage);
    using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
    await assignStandby(pool, "slower", standby); // and was killed
    await take(stage, standby);
    assert.equal(await domainName("slower", stage.host), "slower");
    await removeMachine("slower", stage);
    assert((await domains(stage.connection)).includes(standby));
    await removeMachine(JOB.machine, stage);
  }));

Deno.test("a kept machine outlives its attempt by either name", () =>
  withStage(async (stage) => {
    const standby = await makeStandby(stage);
    const keptUntil = Date.now() + 3600_000;
    const owner = { ...ENDED, attemptDir: "/nonexistent", keptUntil, deadline: keptUntil };
    await take(stage, standby, owner);
    await gc({}, stage);
    assert.deepEqual(stage.lines, []);
    const over = Date.now() - 1000;
    await changeMetadata(stage.connection, standby, { keptUntil: over, deadline: over });
    await gc({}, stage);
    assert.match(stage.lines.join("\n"), /^Removed .*: it was kept until /);
  }));

Deno.test("a job that has no room gets that of a machine that waits", () =>
  withStage(async (stage) => {
    const standby = await makeStandby(stage);
    await prepare(JOB, {}, stage);
    assert(!(await domains(stage.connection)).includes(standby));
    await removeMachine(JOB.machine, stage);
  }, { config: { host: { maxMachines: 1, queueSeconds: 5 } } }));

Deno.test("only the job that starts next has machines removed that wait", () =>
  withStage(async (stage) => {
    await makeStandby(stage);
    await makeStandby(stage);
    using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
    const waiting = async () => waitingIn(await pool.volumeNames()).length;
    const ahead = `ahead.${Date.now()}-64-4711-1234-0123abcd-0123456789abcdef.queue.libvirt-gci`;
    {
      using _ = await createRawVolume(pool, ahead, 0); // of a prepare on another host
    }
    let looks = 0;
    const onThirdLook = () => Promise.resolve(++looks === 3 ? { isThird: true } : null);
    const job = { pool, memoryMib: 64, instead: onThirdLook };
    assert.deepEqual(await waitForAdmission("behind", job, stage), { isThird: true });
    assert.equal(await waiting(), 2);

    await removeVolume(pool, ahead);
    const admission = await waitForAdmission("behind", { pool, memoryMib: 64 }, stage);
    assert.equal(await waiting(), 1);
    await removeStandbys(stage);
    assert("leave" in admission);
    await admission.leave();
  }, { config: { host: { maxMachines: 2, queueSeconds: 5 } } }));

Deno.test("a machine that waits and cannot be removed costs a job without room a warning", () =>
  withStage(async (stage) => {
    const { connection, warnings } = stage;
    const standby = newStandbyName();
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    using theirs = await Domain.create(
      connection,
      standby,
      `<domain type="test"><name>${standby}</name><memory>65536</memory><os><type>hvm</type></os></domain>`,
      0,
    );
    await markWaiting(pool, { name: standby, kind: KIND });
    await prepare(JOB, {}, stage);
    assert.match(
      warnings.join(),
      /Cannot remove the standby machine .* was not created by libvirt-gci/,
    );
    await removeMachine(JOB.machine, stage);
    await theirs.destroy();
  }, { config: { host: { maxMachines: 1, queueSeconds: 5 } } }));

/** The same stage, whose settings want a machine of "debian-12" to wait. */
function wanting(stage: TestStage, differences: Differences<Config> = {}): TestStage {
  return toStage({ ...stage, config: wantingConfig(stage.config, differences) });
}

function wantingConfig(config: Config, differences: Differences<Config> = {}): Config {
  const machine = { ...config.machine, standby: 1 };
  const templates = new Map([["debian-12", {
    machine,
    volume: null,
    aliases: [],
    ownKeys: new Set<string>(),
  }]]);
  return merged<Config>({ ...config, templates }, differences);
}

Deno.test("without a warm image a machine boots, and does not wait if it has no guest agent", () =>
  withStage(async (stage) => {
    const before = await domains(stage.connection);
    await assert.rejects(fillStandbys(wanting(stage)), (error) => {
      assert(error instanceof Error && "details" in error);
      assert.match(String(error.details), /finish its boot/);
      assert.match(String(error.details), /Install an SSH server .* a qemu-guest-agent/);
      return true;
    });
    assert.deepEqual(await domains(stage.connection), before);
  }));

Deno.test("standby --remove removes all that wait", () =>
  withStage(async (stage) => {
    const standby = await makeStandby(stage);
    await removeStandbys(stage);
    assert.deepEqual(stage.lines, [`Removed the standby machine "${standby}"`]);
  }));

Deno.test("what waits stays while nobody can know what is wanted", () =>
  withStage(async (stage) => {
    const standby = await makeStandby(stage);
    const blind = wanting(stage, { pools: { templates: "no-such-pool" } });
    await gc({}, blind);
    await assert.rejects(fillStandbys(blind), /Cannot create all standby machines/);
    assert((await domains(stage.connection)).includes(standby));
    await gc({}, wanting(stage));
    assert.match(stage.lines.join(), /standby machine that matches no setting any more/);
  }));

Deno.test("what waited when its guest ended, as with the host, is removed to be made anew", () =>
  withStage(async (stage) => {
    const standby = await makeStandby(stage);
    {
      using domain = await Domain.lookup(stage.connection, standby);
      await domain.destroy();
    }
    await assert.rejects(fillStandbys(wanting(stage, { pools: { templates: "no-such-pool" } })));
    assert.deepEqual(stage.lines, [
      `Removed the ended standby machine "${standby}"`,
    ]);
  }));

Deno.test("where the settings want none to wait, that is said, and no pool is needed or made", () =>
  withStage(async (stage) => {
    await fillStandbys(stage);
    assert.match(
      stage.lines.join(),
      /^No standby machines are created, because no template .* sets "standby"/,
    );
    await removeStandbys(stage);
  }, { config: { pools: { overlays: "no-such-pool" } } }));

Deno.test("who makes machines wait in the background finds the settings from any directory", () => {
  const config = wantingConfig(DEFAULT_CONFIG);
  const cwd = (): string => "/builds";
  const refill = (file?: string) => refillArguments(config, { file, cwd });
  assert.deepEqual(refill(), ["standby"]);
  assert.deepEqual(refill("/etc/a.yaml"), ["--config", "/etc/a.yaml", "standby"]);
  assert.deepEqual(refill("a.yaml"), ["--config", "/builds/a.yaml", "standby"]);
  assert.equal(refillArguments(DEFAULT_CONFIG, { file: "a.yaml", cwd }), null);
});

Deno.test("who makes machines wait in the background has none of the job's variables", () => {
  const env = { HOME: "/root", PATH: "/bin", CUSTOM_ENV_TOKEN: "secret", CI_JOB_TOKEN: "secret" };
  assert.deepEqual(keptVariables({ ...env, MY_HOME: "secret" }), { HOME: "/root", PATH: "/bin" });
});

Deno.test("too many that wait are unwanted, as many as are too many", () => {
  const volumes = ["1", "2", "3"].map((digit) =>
    `standby-${digit.repeat(16)}.${KIND}.waiting.libvirt-gci`
  );
  const wanted = [{ kind: KIND, count: 2 }] as unknown as WantedStandbys[];
  assert.deepEqual(unwantedOf({ wanted, problems: [] }, volumes), waitingIn(volumes).slice(2));
});

Deno.test("cleanup of a machine that waits takes it from those that jobs could get", () =>
  withStage(async (stage) => {
    const standby = await makeStandby(stage);
    await removeMachine(standby, stage);
    assert.deepEqual(waitingIn(await volumes(stage.connection)), []);
  }));

/**
 * What all volumes hold from now on, whatever is written to them: libvirt's test driver keeps no
 * contents.
 */
function haveAllHold(connection: Connection, contents: object): void {
  const { call } = connection;
  const bytes = new TextEncoder().encode(JSON.stringify(contents));
  let isRead = false;
  connection.call = ((...args: Parameters<typeof call>) => {
    const [name] = args;
    if (name === "virStorageVolDownload") isRead = false;
    if (/^virStorageVol(Up|Down)load$|^virStream(Finish|Abort)$/.test(name)) {
      return Promise.resolve(0);
    }
    if (name === "virStreamSend") return Promise.resolve(Number(args.at(-1)));
    if (name !== "virStreamRecv") return call.apply(connection, args);
    const count = isRead ? 0 : bytes.length;
    isRead = true;
    (args[2] as Uint8Array).set(bytes.subarray(0, count));
    return Promise.resolve(count);
  }) as typeof call;
}

Deno.test("whoever was killed while it had machines wait is in nobody's way", () =>
  withStage(async (stage) => {
    using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
    const dead = { ...await ownProcess(3600), ...ENDED };
    assert(await reserveName(pool, "standby-filler", dead));
    haveAllHold(stage.connection, dead);
    await assert.rejects(fillStandbys(wanting(stage)), /Cannot create all standby machines/);
    assert.doesNotMatch(stage.lines.join(), /Another process/);
  }));

/** Makes a warm image from which libvirt's test driver resumes nothing. Gives the kind of the template's machines. */
async function makeWarmImage(
  stage: TestStage,
): Promise<AsyncDisposable & { readonly kind: string }> {
  const { connection, config } = stage;
  const choice = chooseTemplate(config, "debian-12", { isOperator: true });
  const template = await findTemplate(stage.host, choice, () => "");
  const { settings } = choice;
  const origin = await warmOrigin(connection, { template, settings });
  haveAllHold(connection, { created: new Date().toISOString(), bytesBeforeRam: 1, origin });
  const image = { template: "debian-12", id: "0123456789" };
  {
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    for (const volume of warmVolumes(image)) {
      using _ = await createRawVolume(pool, volume, 1);
    }
  }
  const { wanted: [wanted] } = await findWanted(stage.host);
  assert(wanted);
  return {
    kind: wanted.kind,
    async [Symbol.asyncDispose]() {
      using pool = await StoragePool.lookup(connection, "libvirt-gci");
      await removeWarmImage(pool, image);
    },
  };
}

/** A foreign domain with the name of a standby machine. */
async function startForeign({ connection }: TestStage, name: string): Promise<AsyncDisposable> {
  const xml = `<domain type="test"><name>${name}</name><memory>65536</memory>
    <os><type>hvm</type></os></domain>`;
  const domain = await Domain.create(connection, name, xml, 0);
  return {
    async [Symbol.asyncDispose]() {
      using _ = domain;
      await domain.destroy();
    },
  };
}

/** Has a guest agent that says of all that it has ended well, and at first calls this. */
function haveAgent(connection: Connection, asked: () => Promise<void>): void {
  connection.callForShortString = async () => {
    await asked();
    return JSON.stringify({ return: { pid: 1, exited: true, exitcode: 0 } });
  };
}

Deno.test("a job that gets a machine that waits logs in to it once, by its master, once the key is known", () =>
  withStage(async (stage, guest) => {
    const wants = wanting(stage);
    const [choice] = templatesToWait(wants.config);
    const template = await findTemplate(wants.host, choice ?? assert.fail(), () => "");
    const kind = await standbyKind(template, choice?.settings ?? assert.fail());
    const standby = await makeStandby(stage, ENDED, kind);
    const before = guest.letIn;
    const attemptDir = makeAttemptDir();
    const children: Deno.ChildProcess[] = [];
    using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
    let waiting = Promise.resolve<readonly string[]>([]);
    const startMaster = () => {
      waiting = pool.volumeNames();
      const child = spawnMaster();
      children.push(child);
      return child;
    };
    const { length } = guest.logins;
    const logins: number[] = [];
    haveAgent(stage.connection, async () => {
      await sleep(500);
      logins.push(guest.logins.length);
    });
    await prepare({ ...JOB, attemptDir }, { startMaster }, wants);
    assert.match(stage.lines.join("\n"), new RegExp(`Using the standby machine "${standby}"`));
    assert.deepEqual(logins, [length, length], "it logged in before");
    assert.deepEqual(waitingIn(await waiting), [{ name: standby, kind }], "its master came late");
    assert.equal(guest.letIn, before + 1);
    const socket = controlSocket(attemptDir) ?? "";
    {
      using session = await findMaster(socket, { machine: JOB.machine, bytes: 0 });
      assert.equal(session?.known.domain, standby);
    }
    await removeMachine(JOB.machine, stage, { attemptDir });
    assert.deepEqual(await Promise.all(children.map(async ({ status }) => (await status).code)), [
      0,
    ]);
    await Deno.remove(attemptDir); // which fails if a socket is left in it
  }));

Deno.test("where a machine that waits is of no use, the one that boots has a master", () =>
  withStage(async (stage, guest) => {
    const wants = wanting(stage);
    await using image = await makeWarmImage(wants);
    await makeStandby(stage, ENDED, image.kind); // which has no agent
    const before = guest.letIn;
    const attemptDir = makeAttemptDir();
    await prepare({ ...JOB, attemptDir }, { startMaster: spawnMaster }, wants);
    assert.match(stage.warnings.join("\n"), /Cannot use the standby machine/);
    const socket = controlSocket(attemptDir) ?? "";
    assert(
      await findMaster(socket, { machine: JOB.machine, bytes: 0 }).then((it) => {
        it?.[Symbol.dispose]();
        return it !== null;
      }),
    );
    assert(guest.letIn >= before + 1);
    await removeMachine(JOB.machine, stage, { attemptDir });
    await Deno.remove(attemptDir);
  }));

Deno.test("a machine that waits, is of no use and cannot be removed fails no job", () =>
  withStage(async (stage) => {
    const wants = wanting(stage);
    await using image = await makeWarmImage(wants);
    const name = newStandbyName();
    await using _ = await startForeign(stage, name);
    using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
    await markWaiting(pool, { name, kind: image.kind });
    await prepare(JOB, {}, wants);
    const warnings = stage.warnings.join("\n");
    assert.match(
      warnings,
      /Cannot remove the standby machine .*, so gc will remove it: .*was not created/,
    );
    assert.match(warnings, /Cannot use the standby machine .*: .*has no metadata/);
    await removeMachine(JOB.machine, stage);
  }));

Deno.test("a job that waits its turn tries a machine that comes to wait meanwhile", () =>
  withStage(async (stage) => {
    const wants = wanting(stage);
    await using image = await makeWarmImage(wants);
    const name = newStandbyName();
    await using _ = await startForeign(stage, name);
    using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
    await prepare({ ...JOB, machine: "first" }, {}, stage);
    const prepared = prepare(JOB, {}, wants);
    while (!stage.lines.join().includes("Waiting for")) await sleep(10);
    await markWaiting(pool, { name, kind: image.kind });
    while (stage.warnings.length === 0) await sleep(10);
    await removeMachine("first", stage);
    await prepared;
    assert.match(stage.warnings.join("\n"), /Cannot use the standby machine .*: .*no metadata/);
    await removeMachine(JOB.machine, stage);
  }, { config: { host: { maxMachines: 1, queueSeconds: 10 } } }));

Deno.test("a job over its project's limit takes no machine that waits", () =>
  withStage(async (stage) => {
    const wants = wanting(stage);
    await using image = await makeWarmImage(wants);
    const name = newStandbyName();
    await using _ = await startForeign(stage, name);
    using pool = await StoragePool.lookup(stage.connection, "libvirt-gci");
    await prepare({ ...JOB, machine: "first" }, {}, stage);
    await markWaiting(pool, { name, kind: image.kind });
    const prepared = prepare(JOB, {}, wants);
    const said = () => stage.lines.join().includes("Waiting for a machine of its project");
    for (let i = 0; i < 500 && !said(); i++) await sleep(10);
    assert(said());
    await sleep(200); // for another look
    assert.equal(waitingIn(await pool.volumeNames()).length, 1);
    assert.doesNotMatch(stage.warnings.join("\n"), /Cannot use the standby machine/);
    await removeMachine("first", stage);
    await prepared;
    assert.match(stage.warnings.join("\n"), /Cannot use the standby machine .*: .*no metadata/);
    await removeMachine(JOB.machine, stage);
  }, { config: parseConfig("rules: [{max_machines: 1}]", "config.yaml") }));
