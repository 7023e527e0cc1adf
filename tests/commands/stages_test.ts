// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { configJson } from "../../src/commands/config.ts";
import {
  BuildFailure,
  explain,
  type Fault,
  faultOf,
  ScriptFailure,
  SystemFailure,
} from "../../src/errors.ts";
import { runScript } from "../../src/guest/script.ts";
import { SshConnection } from "../../src/guest/ssh_connection.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { readMetadata, writeMetadata } from "../../src/machine/metadata.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { removeMachine, removeMachineSafely } from "../../src/machine/remove.ts";
import { run } from "../../src/machine/run_script.ts";
import { createDirPool } from "../../src/machine/storage/pools.ts";
import { createRawVolume } from "../../src/machine/storage/volumes.ts";
import { parseConfig } from "../../src/settings/read.ts";
import { sleep } from "../../src/wait.ts";
import { merged } from "../fakes/merged.ts";
import { RUNTIME_DIR, TestGuest } from "../fakes/test_guest.ts";
import { inventory, openTestHost } from "../fakes/test_host.ts";
import { bothWaysIn, Masters, type ScriptTestOptions } from "../fakes/test_master.ts";
import {
  JOB,
  script,
  type TestStage,
  testStage,
  type TestStageOptions,
  toStage,
} from "../fakes/test_stage.ts";

interface Bed {
  readonly connection: Connection;
  readonly guest: TestGuest;
  readonly stage: TestStage;
  /** Runs a script: on a connection of its own, or where the test says so through a connection master. */
  readonly run: typeof run;
}

const bothWays = bothWaysIn(withBed);

/** Gives the test a host, a guest and a stage, and sees that no handle and no machine is left. */
async function withBed(
  test: (bed: Bed) => Promise<void>,
  options: ScriptTestOptions = {},
): Promise<void> {
  const connection = await openTestHost();
  const before = await inventory(connection);
  {
    await using guest = await TestGuest.start(options.guest);
    using stage = testStage(connection, guest, options);
    await using masters = new Masters(guest, connection);
    await test({ connection, guest, stage, run: options.byMaster ? masters.run : run });
    await removeMachine(JOB.machine, stage);
  }
  assert.deepEqual(await inventory(connection), before);
  assert.equal(await connection.close(), 0, "a handle is left");
}

async function isRunning(connection: Connection, machine: string): Promise<boolean> {
  using domain = await Domain.find(connection, machine);
  return domain !== null && await domain.isActive();
}

bothWays(
  "a job runs its scripts in a machine of its own",
  async ({ connection, stage, guest, run }) => {
    await prepare(JOB, {}, stage);
    await run(JOB.machine, script("echo out; echo err >&2"), stage);
    assert.deepEqual(stage.output, { stdout: "out\n", stderr: "err\n" });
    assert(guest.inputs.includes("echo out; echo err >&2"));
    assert(await isRunning(connection, JOB.machine));
    await removeMachine(JOB.machine, stage);
    assert(!await isRunning(connection, JOB.machine));
  },
);

Deno.test("prepare says what it took, and each step of it", () =>
  withBed(async ({ stage }) => {
    const start = performance.now();
    await prepare(JOB, {}, stage);
    const seconds = (performance.now() - start) / 1000;
    assert.match(
      stage.lines.join("\n"),
      /is ready at 127\.99\.0\.\d+ in [\d.]+ m?s \(queue [\d.]+ m?s, disk [\d.]+ m?s, start [\d.]+ m?s, IP address .* SSH [\d.]+ m?s\)$/,
    );
    const [, number, unit] = / in ([\d.]+) (m?s) /.exec(stage.lines.join()) ?? [];
    const said = Number(number) / (unit === "ms" ? 1000 : 1);
    assert(said > seconds - 0.3 && said < seconds + 0.1, `${said} of ${seconds}`);
  }));

for (
  const [start, warning] of [["cold", /^$/], ["auto", /^$/], [
    "warm",
    /no warm image of "deb/,
  ]] as const
) {
  Deno.test(`without a warm image, a machine with "start: ${start}" boots`, () =>
    withBed(async ({ connection, stage }) => {
      await prepare(JOB, {}, stage);
      assert(await isRunning(connection, JOB.machine));
      assert.match(stage.warnings.join("\n"), warning);
    }, { machine: { start } }));
}

Deno.test("prepare writes into the domain whose it is and how to log in", () =>
  withBed(async ({ connection, stage, guest }) => {
    await prepare(JOB, {}, stage);
    using domain = await Domain.lookup(connection, JOB.machine);
    const metadata = await readMetadata(domain);
    assert(metadata);
    const { job, project, template, user, port, address, hostKey } = metadata;
    assert.deepEqual([job, project, template], ["4242", "grp/proj", "debian-12"]);
    assert.deepEqual([user, port], ["gitlab-runner", guest.port]);
    assert.match(address, /^127\.99\.0\./);
    assert.match(hostKey, /^[\w+/]{43}=$/);
    assert.equal((metadata.deadline ?? 0) - (metadata.created ?? 0), (3600 + 600) * 1000);
  }));

bothWays("the script's status is the job's failure, also 255", async ({ stage, run }) => {
  await prepare(JOB, {}, stage);
  for (const scriptStatus of [1, 7, 255]) {
    const ran = run(JOB.machine, script(`exit ${scriptStatus}`), stage);
    await assert.rejects(ran, { scriptStatus });
  }
});

bothWays(
  "a script is never an argument, and its file is gone after it",
  async ({ stage, guest, run }) => {
    await prepare(JOB, {}, stage);
    await run(JOB.machine, script('stat -c "%a %n" "$0" # secret'), stage);
    const [mode, file] = stage.output.stdout.trim().split(" ");
    assert.equal(mode, "600");
    await assert.rejects(Deno.stat(file ?? ""), Deno.errors.NotFound);
    assert(!guest.commands.join().includes("secret"));
  },
);

/** Where a script's file may be. */
const PLACES = ["/dev/shm", RUNTIME_DIR, "/run", "/tmp"];
const ONLY_ROOT = { ignore: Deno.uid() !== 0 }; // mounts something

for (const [index, place] of PLACES.entries()) {
  const full = PLACES.slice(0, index);
  Deno.test(
    `a script is in memory, and in /tmp only without space there: ${place} after ${full.length} full`,
    ONLY_ROOT,
    () =>
      withBed(async ({ stage }) => {
        await prepare(JOB, {}, stage);
        await run(JOB.machine, script(`echo "$0" # ${"long".repeat(10_000)}`), stage);
        assert.match(stage.output.stdout, new RegExp(`^${place}/\\.libvirt-gci-[0-9a-f]{32}\n$`));
        assert.equal(stage.output.stderr, "");
      }, { guest: { full } }),
  );
}

Deno.test(
  "a guest that a job has filled is the job's failure, and the template's before",
  ONLY_ROOT,
  () =>
    withBed(async ({ stage }) => {
      await prepare(JOB, {}, stage);
      const text = script("echo ran #".padEnd(1_000_000));
      const runAs = (name: string) => run(JOB.machine, text, stage, { name, say: () => {} });
      await assert.rejects(runAs("prepare_script"), (error) => {
        assert(error instanceof SystemFailure && faultOf(error) === "template");
        assert.match(error.message, /guest has no space left for the script/);
        return true;
      });
      for (const name of ["build_script", "cleanup_file_variables"]) {
        await assert.rejects(runAs(name), (error) => {
          assert(error instanceof BuildFailure && !(error instanceof ScriptFailure));
          assert.equal(faultOf(error), "script");
          assert.match(error.message, /guest has no space left for the script/);
          assert.match(error.advice ?? "", /LIBVIRT_GCI_DISK_GIB/);
          return true;
        });
      }
      assert.deepEqual(stage.output, { stdout: "", stderr: "" });
    }, { guest: { full: PLACES } }),
);

bothWays("a script of a megabyte runs", async ({ stage, run }) => {
  await prepare(JOB, {}, stage);
  const long = `: '${"x".repeat(1024 * 1024)}'\necho end`;
  await run(JOB.machine, script(long), stage);
  assert.equal(stage.output.stdout, "end\n");
});

Deno.test("a guest without the shell of the settings is no failure of the script", () =>
  withBed(async ({ guest, stage }) => {
    using ssh = await SshConnection.open(guest.login, { timeoutMs: 5000, signal: stage.signal });
    const { stdout, stderr } = stage;
    const shell = "no-such-shell" as "sh";
    const text = new TextEncoder().encode("true");
    await assert.rejects(runScript(ssh, { text, shell, stdout, stderr }, stage.signal), {
      message: /guest has no shell "no-such-shell"/,
      fault: "template",
    });
  }));

bothWays("a script's standard input is empty", async ({ stage, run }) => {
  await prepare(JOB, {}, stage);
  await run(JOB.machine, script("cat; echo the rest"), stage);
  assert.equal(stage.output.stdout, "the rest\n");
});

bothWays("processes that a script leaves behind do not hold the stage", async ({ stage, run }) => {
  await prepare(JOB, {}, stage);
  const start = performance.now();
  await run(JOB.machine, script("(sleep 20; echo late) & echo first"), stage);
  assert.equal(stage.output.stdout, "first\n");
  assert(performance.now() - start < 10_000);
});

Deno.test("prepare calls no machine isolated whose host's addresses it cannot see", () =>
  withBed(async ({ stage }) => {
    await assert.rejects(
      prepare(JOB, {}, stage),
      (error) =>
        error instanceof SystemFailure && faultOf(error) === "settings" &&
        /^Cannot isolate machines of the network "default": .* bridge "virbr0"/.test(
          error.message,
        ) &&
        /"network\.host_addresses".*"network\.isolate" to false/.test(error.advice ?? ""),
    );
    assert.deepEqual(stage.lines, [], "it began to make a machine");
  }, { machine: { network: { isolate: true } } }));

Deno.test("with network.host_addresses, prepare goes on where it cannot see the host's addresses", () =>
  withBed(async ({ stage }) => {
    const error = await prepare(JOB, {}, stage).then(() => null, (error) => error);
    assert.doesNotMatch(String(error), /of the network "default"/);
  }, { machine: { network: { isolate: true, hostAddresses: ["192.0.2.7/24"] } } }));

bothWays("all that a script wrote before it ended arrives", async ({ stage, run }) => {
  await prepare(JOB, {}, stage);
  await run(JOB.machine, script("sleep 5 & head -c 3000000 /dev/zero | tr '\\0' x"), stage);
  assert.equal(stage.output.stdout.length, 3_000_000);
});

/** Cancels a script some milliseconds after its first sleep, and sees that no sleep is left. */
async function cancel(
  text: (sleep: string) => string,
  sleeps: number,
  { connection, stage, run }: Bed,
) {
  await prepare(JOB, {}, stage);
  const mark = `99.${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  const ran = run(JOB.machine, script(`echo "$0"; ${text(`sleep ${mark}`)}`), stage);
  ran.catch(() => {});
  if (sleeps > 0) await untilProcesses(mark, sleeps);
  stage.abort(new SystemFailure({ what: "Cancelled by SIGTERM" }));
  await assert.rejects(ran, /Cancelled by SIGTERM/);
  await untilProcesses(mark, 0);
  await assert.rejects(Deno.stat(stage.output.stdout.trim()), Deno.errors.NotFound);
  assert(await isRunning(connection, JOB.machine));
}

bothWays(
  "a cancelled script ends with all its processes, and the machine lives on",
  (bed) =>
    cancel((sleep) => `setsid ${sleep} & ${sleep} & trap '' TERM; ${sleep}; ${sleep}`, 3, bed),
);

bothWays(
  "a cancelled script's processes end that hide from their environment and from TERM",
  (bed) => cancel((sleep) => `env -i bash -c "trap '' TERM; ${sleep}; ${sleep}"; ${sleep}`, 1, bed),
);

bothWays(
  "a cancel ends within five seconds in a guest that does not answer",
  async ({ connection, stage, guest, run }) => {
    await prepare(JOB, {}, stage);
    const mark = `99.${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    const ran = run(JOB.machine, script(`sleep ${mark}`), stage);
    ran.catch(() => {});
    await untilProcesses(mark, 1);
    guest.suspend();
    const start = performance.now();
    stage.abort(new SystemFailure({ what: "Cancelled by SIGTERM" }));
    await assert.rejects(ran, (error) => {
      assert.match(explain(error), /Cancelled by SIGTERM/);
      return true;
    });
    assert(performance.now() - start < 5000);
    assert(await isRunning(connection, JOB.machine));

    const again = performance.now();
    const next = toStage({ ...stage, signal: new AbortController().signal });
    await assert.rejects(
      run(JOB.machine, script("true"), next),
      /The machine ".*" still does not answer/,
    );
    assert(performance.now() - again < 5000);
  },
);

Deno.test("a guest that did not answer a cancel, and answers again, is as any other", () =>
  withBed(async ({ connection, stage }) => {
    await prepare(JOB, {}, stage);
    using domain = await Domain.lookup(connection, JOB.machine);
    const record = await readMetadata(domain);
    assert(record);
    await writeMetadata(domain, { ...record, silent: true });
    await run(JOB.machine, script("true"), stage);
    assert.deepEqual(await readMetadata(domain), record);
  }));

bothWays(
  "a script whose output nobody takes any more ends with all its processes",
  async ({ stage, run }) => {
    await prepare(JOB, {}, stage);
    const mark = `99.${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    const stdout = async (): Promise<void> => {
      await untilProcesses(mark, 1);
      throw new Deno.errors.BrokenPipe("nobody reads it");
    };
    const text = script(`setsid sleep ${mark} & echo first; sleep 30`);
    await assert.rejects(run(JOB.machine, text, toStage({ ...stage, stdout })), /nobody reads it/);
    await untilProcesses(mark, 0);
  },
);

for (const milliseconds of [0, 5, 20, 40]) {
  bothWays(
    `a script that is cancelled ${milliseconds} ms after it started does not go on`,
    async ({ stage, run, ...bed }) => {
      await prepare(JOB, {}, stage);
      const mark = `99.${crypto.getRandomValues(new Uint32Array(1))[0]}`;
      const before = bed.guest.commands.length;
      const ran = run(JOB.machine, script(`sleep ${mark}`), stage);
      ran.catch(() => {});
      while (bed.guest.commands.length === before) await sleep(1);
      await sleep(milliseconds);
      stage.abort(new SystemFailure({ what: "Cancelled by SIGTERM" }));
      await assert.rejects(ran, /Cancelled by SIGTERM/);
      await untilProcesses(mark, 0);
    },
  );
}

async function untilProcesses(mark: string, count: number): Promise<void> {
  for (let i = 0; i < 100; i++) {
    const { stdout } = await new Deno.Command("pgrep", { args: ["-cxf", `sleep ${mark}`] })
      .output();
    if (Number(new TextDecoder().decode(stdout)) === count) return;
    await sleep(50);
  }
  assert.fail(`there are not ${count} processes`);
}

bothWays("a lost connection is the host's failure, never success", async ({ stage, run }) => {
  await prepare(JOB, {}, stage);
  await assert.rejects(run(JOB.machine, script("true"), stage), (error) => {
    assert(error instanceof SystemFailure);
    assert.match(error.message, /connection to the guest broke/);
    assert.equal(faultOf(error), "lost");
    return true;
  });
}, { guest: { loseScripts: true } });

bothWays(
  "a connection that is lost before the status comes is no success",
  async ({ stage, run }) => {
    await prepare(JOB, {}, stage);
    const start = performance.now();
    await assert.rejects(run(JOB.machine, script("true"), stage), /connection to the guest broke/);
    assert(performance.now() - start < 10_000);
  },
  { guest: { loseStatus: true } },
);

Deno.test("prepare gives up on a guest that lets in and never answers a command", () =>
  withBed(async ({ stage }) => {
    const prepared = prepare(JOB, {}, stage);
    setTimeout(() => stage.abort(new SystemFailure({ what: "Cancelled by SIGTERM" })), 1000);
    await assert.rejects(prepared, /Cancelled by SIGTERM/);
  }, { guest: { ignoreCommands: true }, machine: { timeouts: { sshSeconds: 60 } } }));

bothWays("a script that kills its own session is no success", async ({ stage, run }) => {
  await prepare(JOB, {}, stage);
  await assert.rejects(run(JOB.machine, script("kill -KILL $PPID"), stage), SystemFailure);
});

bothWays(
  "a machine that is destroyed while a script runs is the host's failure",
  async ({ connection, stage, run }) => {
    await prepare(JOB, {}, stage);
    const ran = run(JOB.machine, script("sleep 30"), stage);
    ran.catch(() => {});
    using domain = await Domain.lookup(connection, JOB.machine);
    await domain.destroy();
    await assert.rejects(ran, { message: /ended: it powered off/, fault: "guest_ended" });
  },
);

Deno.test("run says that a machine is gone", () =>
  withBed(async ({ stage }) => {
    await assert.rejects(run(JOB.machine, script("true"), stage), {
      message: /machine ".*" does not exist/,
      fault: "guest_ended",
    });
  }));

Deno.test("run refuses a guest that shows another host key", () =>
  withBed(async ({ connection, stage }) => {
    await prepare(JOB, {}, stage);
    await using other = await TestGuest.start();
    using domain = await Domain.lookup(connection, JOB.machine);
    const metadata = await readMetadata(domain);
    assert(metadata);
    const { writeMetadata } = await import("../../src/machine/metadata.ts");
    await writeMetadata(domain, { ...metadata, port: other.port });
    await assert.rejects(run(JOB.machine, script("true"), stage), {
      message: /does not show the machine's host key/,
      fault: "host_key",
    });
    assert.deepEqual([other.logins, other.commands, other.inputs], [[], [], []]);
  }));

Deno.test("prepare blames the job for a template that does not exist", () =>
  withBed(async ({ stage }) => {
    const prepared = prepare({ ...JOB, template: "no-such" }, {}, stage);
    await assert.rejects(prepared, (error) => {
      assert(error instanceof BuildFailure && !(error instanceof ScriptFailure));
      assert.match(error.message, /Cannot find the template "no-such"/);
      assert.equal(faultOf(error), "template");
      assert.match(error.advice ?? "", /debian-12, old-name/);
      return true;
    });
  }));

for (const template of ["no-such:latest", null, "old-name"]) {
  Deno.test(`prepare lists the templates for a job that asks for ${template}`, () =>
    withBed(async ({ stage }) => {
      await assert.rejects(prepare({ ...JOB, template }, {}, stage), {
        name: "BuildFailure",
        message: /^The job asks for /,
        advice: /to a template that this job may have: debian-12(;|$)/,
      });
      assert.deepEqual(stage.lines, [], "it began to make a machine");
    }, { config: { allowedTemplates: ["debian-*"] } }));
}

Deno.test("prepare says so where no template is there, or none is to be seen", () =>
  withBed(async ({ connection, stage }) => {
    const noName = { ...JOB, template: "no-such:latest" };
    using pool = await StoragePool.define(
      connection,
      "empty",
      '<pool type="dir"><name>empty</name><target><path>/nonexistent/e</path></target></pool>',
    );
    await pool.buildAndStart();
    const from = (templates: string) =>
      toStage({ ...stage, config: merged(stage.config, { pools: { templates } }) });
    await assert.rejects(prepare(noName, {}, from("empty")), {
      name: "BuildFailure",
      advice: /libvirt-gci template add NAME IMAGE \(the storage pool "empty" has none\)/,
    });
    await assert.rejects(prepare(noName, {}, from("gone")), {
      name: "BuildFailure",
      advice: /: any of the storage pool "gone"$/,
    });
  }));

Deno.test("prepare says which services of a job nobody starts, and what to do", () =>
  withBed(async ({ stage }) => {
    await prepare({ ...JOB, services: ["postgres:16", "x\x1b[8m\n\u202e"] }, {}, stage);
    assert.deepEqual(stage.warnings, [
      "The job's services are not started, because libvirt-gci starts no containers: " +
      '"postgres:16", "x\\u001b[8m\\n\\u202e". Start them in the job\'s script, or install them in ' +
      "the template",
    ]);
    await removeMachine(JOB.machine, stage);
    await prepare(JOB, {}, stage);
    assert.equal(stage.warnings.length, 1);
  }));

Deno.test("of many services with long names, prepare says ten, and the start of each", () =>
  withBed(async ({ stage }) => {
    const services = Array.from({ length: 1000 }, (_, i) => `${i}-${"x".repeat(1000)}`);
    await prepare({ ...JOB, services }, {}, stage);
    assert.match(stage.warnings.join("\n"), /: "0-x{58}…", .*"9-x{58}…", and 990 more\. /);
  }));

Deno.test("a template's name may be the volume's, with or without .qcow2", () =>
  withBed(async ({ stage }) => {
    await prepare({ ...JOB, template: "old-name" }, {}, stage);
  }));

Deno.test("prepare refuses a template whose header is gone", () =>
  withBed(async ({ connection, stage }) => {
    using pool = await StoragePool.lookup(connection, "base_imgs");
    using volume = await createRawVolume(pool, "broken.qcow2", 1);
    const failed = prepare({ ...JOB, template: "broken" }, {}, stage);
    await assert.rejects(failed, /"broken.qcow2" is not a qcow2 image/);
    await volume.delete();
  }));

Deno.test("prepare blames the host for a template that only its settings name", () =>
  withBed(async ({ stage }) => {
    const prepared = prepare({ ...JOB, template: null }, {}, stage);
    await assert.rejects(prepared, (error) => {
      assert(error instanceof SystemFailure);
      assert.match(error.message, /Cannot find the template "no-such"/);
      return true;
    });
  }, { config: { defaultTemplate: "no-such" } }));

const HOST_FAULTS: Record<string, [TestStageOptions, RegExp, Fault]> = {
  "no template pool": [
    { config: { pools: { templates: "gone" } } },
    /no storage pool "gone"/,
    "storage",
  ],
  "no overlay pool": [
    { config: { pools: { overlays: "gone" } } },
    /no storage pool "gone"/,
    "storage",
  ],
  "no network": [{ machine: { network: { name: "gone" } } }, /no network "gone"/, "network"],
  "no key": [
    { machine: { ssh: { key: "/nonexistent/key" } } },
    /SSH key "\/nonexistent\/key"/,
    "settings",
  ],
  "a full pool": [
    { machine: { diskGib: 1000 } },
    /Cannot create the disks of the machine/,
    "storage",
  ],
  "a domain that libvirt refuses": [
    { machine: { cpu: { mode: "nonsense" } } },
    /Cannot start/,
    "start",
  ],
};

for (const [what, [options, message, fault]] of Object.entries(HOST_FAULTS)) {
  Deno.test(`prepare blames the host for ${what}, and leaves nothing`, () =>
    withBed(async ({ stage }) => {
      const error = await prepare(JOB, {}, stage).then(() => null, (error) => error);
      assert(error instanceof Error && !(error instanceof BuildFailure));
      assert.match(error.message, message);
      assert.equal(faultOf(error), fault);
    }, options));
}

Deno.test("prepare fails at once if the guest refuses the key, and leaves nothing", () =>
  withBed(async ({ connection, stage }) => {
    const before = await inventory(connection);
    const start = performance.now();
    await assert.rejects(prepare(JOB, {}, stage), (error) => {
      assert(error instanceof SystemFailure);
      assert.match(String(error.cause), /refuses the key for the user "gitlab-runner"/);
      assert.equal(faultOf(error), "ssh_refused");
      return true;
    });
    assert(performance.now() - start < 20_000);
    assert.deepEqual(await inventory(connection), before);
  }, { guest: { refuseKey: true }, machine: { timeouts: { sshSeconds: 60 } } }));

Deno.test("prepare leaves nothing if SSH never answers, and says why", () =>
  withBed(async ({ connection, stage }) => {
    const before = await inventory(connection);
    await assert.rejects(prepare(JOB, {}, stage), (error) => {
      assert(error instanceof SystemFailure);
      assert.match(String(error.cause), /within 1 s: it refuses the connection/);
      assert.equal(faultOf(error), "ssh_timeout");
      return true;
    });
    assert.deepEqual(await inventory(connection), before);
  }, { machine: { ssh: { port: 1 }, timeouts: { sshSeconds: 1 } } }));

Deno.test("prepare leaves nothing when it is cancelled", () =>
  withBed(async ({ connection, stage }) => {
    const before = await inventory(connection);
    const prepared = prepare(JOB, {}, stage);
    setTimeout(() => stage.abort(new SystemFailure({ what: "Cancelled by SIGTERM" })), 500);
    await assert.rejects(prepared, /Cancelled by SIGTERM/);
    assert.deepEqual(await inventory(connection), before);
  }, { machine: { ssh: { port: 1 }, timeouts: { sshSeconds: 60 } } }));

Deno.test("prepare refuses a name that is taken, and leaves the one who has it alone", () =>
  withBed(async ({ connection, stage }) => {
    const prepared = prepare({ ...JOB, machine: "somebody" }, {}, stage);
    await assert.rejects(prepared, /There is a domain "somebody" already/);
    assert(await isRunning(connection, "somebody"));
    await prepare(JOB, {}, stage);
    await assert.rejects(prepare(JOB, {}, stage), /already/);
    assert(await isRunning(connection, JOB.machine));
  }));

Deno.test("of two prepares for one name at once, the one that fails leaves the other alone", () =>
  withBed(async ({ connection, stage }) => {
    const both = await Promise.allSettled([prepare(JOB, {}, stage), prepare(JOB, {}, stage)]);
    assert.deepEqual(both.map(({ status }) => status).sort(), ["fulfilled", "rejected"]);
    const loser = both.find((end) => end.status === "rejected");
    assert.match(String(loser?.reason), /There is a .* already/);
    await run(JOB.machine, script("true"), stage);
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    using overlay = await pool.findVolume(`${JOB.machine}.overlay.libvirt-gci`);
    assert(overlay);
  }));

Deno.test("a job cannot have another job's disk for its template", () =>
  withBed(async ({ stage }) => {
    await prepare(JOB, {}, stage);
    const template = `${JOB.machine}.overlay.libvirt-gci`;
    const config = merged(stage.config, { pools: { templates: "libvirt-gci" } });
    const spying = prepare({ ...JOB, machine: "spy", template }, {}, toStage({ ...stage, config }));
    await assert.rejects(spying, (error) => {
      assert(error instanceof BuildFailure);
      assert.doesNotMatch(error.advice ?? "", /libvirt-gci/);
      return true;
    });
  }));

Deno.test("a pool that another prepare has defined and not yet started is waited for", () =>
  withBed(async ({ connection }) => {
    using pool = await StoragePool.define(
      connection,
      "new",
      '<pool type="dir"><name>new</name><target><path>/nonexistent/new</path></target></pool>',
    );
    const started = sleep(300).then(() => pool.buildAndStart());
    await createDirPool(connection, "new");
    assert(await pool.isActive());
    await started;
  }));

Deno.test("a pool that somebody stopped stays so, and the message says how to start it", () =>
  withBed(async ({ connection, guest }) => {
    using _ = await StoragePool.define(
      connection,
      "stopped",
      '<pool type="dir"><name>stopped</name><target><path>/nonexistent/s</path></target></pool>',
    );
    using stage = testStage(connection, guest, { config: { pools: { overlays: "stopped" } } });
    await assert.rejects(prepare(JOB, {}, stage), { message: /pool "stopped" is not active/ });
  }));

Deno.test("prepare makes up a name for a machine that nobody names", () =>
  withBed(async ({ stage }) => {
    const { name } = await prepare({ ...JOB, machine: null }, {}, stage);
    assert.match(name, /^gci-debian-12-[0-9a-f]{8}$/);
    await removeMachine(name, stage);
  }));

Deno.test("cleanup succeeds without a machine, and twice", () =>
  withBed(async ({ stage }) => {
    await removeMachine(JOB.machine, stage);
    assert.match(stage.lines.at(-1) ?? "", /There is no machine/);
    await prepare(JOB, {}, stage);
    await removeMachine(JOB.machine, stage);
    assert.match(stage.lines.at(-1) ?? "", /Removed the machine/);
    await removeMachine(JOB.machine, stage);
  }));

Deno.test("cleanup goes on over a new connection if libvirt goes away at its first call", () =>
  withBed(async ({ connection, stage }) => {
    await prepare(JOB, {}, stage);
    const { call } = connection;
    const goesAway = (): Promise<never> => Promise.reject(new Error("libvirt went away"));
    connection.call = goesAway as typeof call;
    const connect = (): Promise<Connection> => {
      connection.call = call; // it was started again
      return stage.connect();
    };
    await removeMachineSafely(JOB.machine, toStage({ ...stage, connect }));
    assert(!await isRunning(connection, JOB.machine));
  }));

Deno.test("three cleanups of one machine at once all succeed", () =>
  withBed(async ({ stage }) => {
    await prepare(JOB, {}, stage);
    await Promise.all([1, 2, 3].map(() => removeMachine(JOB.machine, stage)));
  }));

Deno.test("cleanup removes the disk of a machine whose domain is gone", () =>
  withBed(async ({ connection, stage }) => {
    await prepare(JOB, {}, stage);
    using domain = await Domain.lookup(connection, JOB.machine);
    await domain.destroy();
    await removeMachine(JOB.machine, stage);
    assert.match(stage.lines.at(-1) ?? "", /Removed the machine/);
  }));

Deno.test("cleanup ends a machine in which a script runs", () =>
  withBed(async ({ stage }) => {
    await prepare(JOB, {}, stage);
    const ran = run(JOB.machine, script("sleep 30"), stage);
    ran.catch(() => {});
    await removeMachine(JOB.machine, stage);
    await assert.rejects(ran, SystemFailure);
  }));

Deno.test("cleanup refuses a domain that is not ours", () =>
  withBed(async ({ connection, stage }) => {
    await assert.rejects(removeMachine("somebody", stage), /was not created by libvirt-gci/);
    assert(await isRunning(connection, "somebody"));
  }));

Deno.test("cleanup touches no volume that is not ours, whatever the machine's name", () =>
  withBed(async ({ connection, stage }) => {
    const before = await inventory(connection);
    for (const machine of ["somebody.qcow2", "debian-12", "debian-12.qcow2", "old-name"]) {
      await removeMachine(machine, stage);
    }
    assert.deepEqual(await inventory(connection), before);
  }));

Deno.test("no machine has a larger disk than the settings let it, though the template has", () =>
  withBed(async ({ stage }) => {
    await assert.rejects(prepare(JOB, {}, stage), /has 4 GiB, but "limits\.disk_gib" is 3/);
  }, { machine: { limits: { diskGib: 3 } } }));

Deno.test("config does not guess the directories of a job whose rule nobody can tell", () => {
  const config = parseConfig("rules: [{ limits: {vcpus: 4} }]", "config.yaml");
  assert.throws(() => configJson({ ...JOB, project: null }, config, "1"), /project is unknown/);
});
