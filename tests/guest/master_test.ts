// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { MASTER_ARGUMENT } from "../../src/cli/background.ts";
import { explain, faultOf, SystemFailure } from "../../src/errors.ts";
import type { Outputs } from "../../src/guest/command_streams.ts";
import { endMaster, findMaster, MOST_SCRIPT_BYTES } from "../../src/guest/master/client.ts";
import { controlSocket } from "../../src/guest/master/control_socket.ts";
import { FrameReader, FrameWriter, KIND, PROTOCOL } from "../../src/guest/master/frames.ts";
import type { MasterTask } from "../../src/guest/master/master.ts";
import { GuestSilent } from "../../src/guest/script.ts";
import { sleep } from "../../src/wait.ts";
import { TestGuest, type TestGuestOptions } from "../fakes/test_guest.ts";
import {
  isThere,
  makeAttemptDir,
  MasterProcess,
  masterTask,
  TestMaster,
} from "../fakes/test_master.ts";
import { script } from "../fakes/test_stage.ts";

interface Bed {
  readonly guest: TestGuest;
  readonly master: TestMaster;
}

/** Gives the test a master and its guest, and sees that nothing is left in the attempt's directory. */
async function withMaster(
  test: (bed: Bed) => Promise<void>,
  { guest: options, task = {} }: {
    readonly guest?: TestGuestOptions;
    readonly task?: Partial<MasterTask>;
  } = {},
): Promise<void> {
  const directory = makeAttemptDir();
  {
    await using guest = await TestGuest.start(options);
    await using master = await TestMaster.start(guest, masterTask(directory, task));
    await test({ guest, master });
  }
  await Deno.remove(directory); // which fails if anything is left in it
}

const signal = new AbortController().signal;

/** Takes output, and has it as a text. */
function collector(): Outputs & { readonly texts: { stdout: string; stderr: string } } {
  const texts = { stdout: "", stderr: "" };
  const take = (stream: "stdout" | "stderr") => (bytes: Uint8Array): Promise<void> => {
    texts[stream] += new TextDecoder("latin1").decode(bytes);
    return Promise.resolve();
  };
  return { texts, stdout: take("stdout"), stderr: take("stderr") };
}

/** Runs a script through the master. */
async function runBy(
  master: TestMaster,
  text: string,
  outputs: Outputs = collector(),
  until: AbortSignal = signal,
): Promise<number> {
  using session = await master.session(script(text).length);
  return await session.run(script(text), outputs, until);
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

function newMark(): string {
  return `99.${crypto.getRandomValues(new Uint32Array(1))[0]}`;
}

Deno.test("many scripts go through one login, one after another and at once", () =>
  withMaster(async ({ guest, master }) => {
    assert.equal(await runBy(master, "exit 3"), 3);
    const { length } = guest.logins;
    assert.equal(await runBy(master, ""), 0);
    const texts = await Promise.all([1, 2, 3].map(async (number) => {
      const outputs = collector();
      await runBy(master, `echo ${number}; sleep 0.2; echo ${number} >&2`, outputs);
      return outputs.texts;
    }));
    assert.deepEqual(texts, [1, 2, 3].map((n) => ({ stdout: `${n}\n`, stderr: `${n}\n` })));
    assert.equal(guest.logins.length, length);
  }));

Deno.test("ten megabytes of any bytes arrive as they are", () =>
  withMaster(async ({ master }) => {
    const file = await Deno.makeTempFile({ prefix: "libvirt-gci-test-" });
    const part = crypto.getRandomValues(new Uint8Array(65_536));
    const whole = new Uint8Array(160 * part.length);
    for (let at = 0; at < whole.length; at += part.length) whole.set(part, at);
    await Deno.writeFile(file, whole);
    const parts: Uint8Array[] = [];
    const stdout = (bytes: Uint8Array) => Promise.resolve(void parts.push(bytes));
    await runBy(master, `cat ${file}`, { ...collector(), stdout });
    const arrived = new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
    const hash = async (bytes: Uint8Array<ArrayBuffer>) =>
      new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
    assert.equal(await hash(arrived), await hash(whole));
    await Deno.remove(file);
  }));

Deno.test("a reader that stands still stops the guest, and neither process holds its output", () =>
  withMaster(async ({ master }) => {
    const file = await Deno.makeTempFile({ prefix: "libvirt-gci-test-" });
    const goOn = Promise.withResolvers<void>();
    let taken = 0;
    const stdout = async (bytes: Uint8Array): Promise<void> => {
      await goOn.promise;
      taken += bytes.length;
    };
    const text = `for i in $(seq 400); do head -c 100000 /dev/zero; echo $i >${file}; done`;
    const ran = runBy(master, text, { ...collector(), stdout });
    await sleep(1500);
    const written = Number(await Deno.readTextFile(file));
    assert(written < 200, `${written} of 400 parts went somewhere`);
    goOn.resolve();
    assert.equal(await ran, 0);
    assert.equal(taken, 40_000_000);
    await Deno.remove(file);
  }));

Deno.test("scripts that leave processes behind use up no sessions of their connection", () =>
  withMaster(async ({ guest, master }) => {
    await runBy(master, "true");
    const { length } = guest.logins;
    for (let i = 0; i < 4; i++) assert.equal(await runBy(master, "sleep 5 & exit 3"), 3);
    assert.equal(guest.logins.length, length);
  }, { guest: { maxSessions: 2 } }));

for (const how of ["is cancelled", "loses its run"] as const) {
  Deno.test(`a script that ${how} ends in the guest with all its processes`, () =>
    withMaster(async ({ master }) => {
      const mark = newMark();
      const cancel = new AbortController();
      const { task: { socket, machine } } = master;
      const text = script(`setsid sleep ${mark} & trap '' TERM; sleep ${mark}; sleep ${mark}`);
      using other = await findMaster(socket, { machine, bytes: text.length });
      assert(other !== null);
      const ran = other.run(text, collector(), cancel.signal);
      ran.catch(() => {});
      await untilProcesses(mark, 2);
      if (how === "is cancelled") cancel.abort(new Error("enough"));
      else other[Symbol.dispose]();
      await assert.rejects(ran, how === "is cancelled" ? /^Error: enough$/ : /connection .* broke/);
      await untilProcesses(mark, 0);
      assert.equal(await runBy(master, "true"), 0);
    }));
}

Deno.test("a script whose output nobody takes ends, though the taker never answers", () =>
  withMaster(async ({ master }) => {
    const cancel = new AbortController();
    const stuck = { ...collector(), stdout: () => new Promise<void>(() => {}) };
    const ran = runBy(master, "while :; do echo more; done", stuck, cancel.signal);
    ran.catch(() => {});
    await sleep(500);
    cancel.abort(new Error("enough"));
    await assert.rejects(ran, /^Error: enough$/);
  }));

Deno.test("of a guest that does not answer a cancel, the master says so and ends", () =>
  withMaster(async ({ guest, master }) => {
    const mark = newMark();
    const cancel = new AbortController();
    const ran = runBy(master, `sleep ${mark}`, collector(), cancel.signal);
    ran.catch(() => {});
    await untilProcesses(mark, 1);
    guest.suspend();
    cancel.abort(new Error("enough"));
    await assert.rejects(ran, (error) => error instanceof GuestSilent && !!error.cause);
    await master.ended;
  }));

Deno.test("a master whose guest does not answer ends at once, also if the script's run is gone", () =>
  withMaster(async ({ guest, master }) => {
    const mark = newMark();
    const text = script(`sleep ${mark}`);
    const session = await master.session(text.length);
    const ran = session.run(text, collector(), signal);
    ran.catch(() => {});
    await untilProcesses(mark, 1);
    guest.suspend();
    session[Symbol.dispose]();
    const start = performance.now();
    await master.ended;
    const seconds = (performance.now() - start) / 1000;
    assert(seconds < 10, `${seconds} s`);
  }));

for (
  const [what, options] of [["lost", { loseScripts: true }], ["lost", {
    loseStatus: true,
  }]] as const
) {
  Deno.test(`a guest ${what} by ${Object.keys(options)} is no success, and ends the master`, () =>
    withMaster(async ({ master }) => {
      await assert.rejects(runBy(master, "true"), (error) => {
        assert(error instanceof SystemFailure);
        assert.match(error.message, /^The connection to the guest broke while the script ran$/);
        assert.equal(faultOf(error), "lost");
        return true;
      });
      await master.ended;
    }, { guest: options }));
}

Deno.test("a guest that is lost between two scripts ends the master", () =>
  withMaster(async ({ guest, master }) => {
    await runBy(master, "true");
    guest.cutPower();
    await master.ended;
    assert(!await isThere(master.task.socket));
  }));

Deno.test("an idle guest that sends no sign of life is lost after 15 seconds", () =>
  withMaster(async ({ guest, master }) => {
    await runBy(master, "true");
    const start = performance.now();
    guest.suspend();
    await master.ended;
    const seconds = (performance.now() - start) / 1000;
    assert(seconds > 10 && seconds < 40, `${seconds} s`);
  }));

/** What `findMaster` finds when something disagrees, and whether the master runs on. */
async function refuses(
  { task }: TestMaster,
  wanted: Partial<{ socket: string; machine: string; bytes: number }> = {},
): Promise<void> {
  const { socket = task.socket, machine = task.machine, bytes = 4 } = wanted;
  assert.equal(await findMaster(socket, { machine, bytes }), null);
}

Deno.test("no master is found for another machine, or for a script of no sane size", () =>
  withMaster(async ({ master }) => {
    await refuses(master, { machine: "other" });
    await refuses(master, { bytes: MOST_SCRIPT_BYTES + 1 });
    await refuses(master, { bytes: -1 });
    await endMaster(master.task.socket, "other");
    assert.equal(await runBy(master, "true"), 0, "it ended for another machine");
  }));

Deno.test("no master is found behind a link, or in a directory that others may enter", () =>
  withMaster(async ({ master }) => {
    await runBy(master, "true");
    const directory = makeAttemptDir();
    const link = controlSocket(directory) ?? "";
    await Deno.symlink(master.task.socket, link);
    await refuses(master, { socket: link });
    await Deno.remove(directory, { recursive: true });
    await refuses(master, { socket: "/nonexistent/socket" });
    const own = master.task.socket.slice(0, master.task.socket.lastIndexOf("/"));
    await Deno.chmod(own, 0o755);
    await refuses(master);
    await Deno.chmod(own, 0o700);
    assert.equal(await runBy(master, "true"), 0);
  }));

Deno.test(
  "no master is found at another user's socket",
  { ignore: Deno.uid() !== 0 },
  () =>
    withMaster(async ({ master }) => {
      await runBy(master, "true");
      await Deno.chown(master.task.socket, 65534, 65534);
      await refuses(master);
      await Deno.chown(master.task.socket, 0, 0);
    }),
);

Deno.test("another program's master is refused, and a master refuses another program", async () => {
  const directory = makeAttemptDir();
  const socket = controlSocket(directory) ?? "";
  using listener = Deno.listen({ transport: "unix", path: socket });
  const asked = (async () => {
    using conn = await listener.accept();
    const hello = await new FrameReader(conn).next();
    await new FrameWriter(conn).send(KIND.refused);
    return new TextDecoder().decode(hello?.bytes);
  })();
  assert.equal(await findMaster(socket, { machine: "m", bytes: 1 }), null);
  assert.match(await asked, new RegExp(`"protocol":${PROTOCOL}\\b`));
  await Deno.remove(directory, { recursive: true });
  await withMaster(async ({ master }) => {
    await runBy(master, "true");
    using conn = await Deno.connect({ transport: "unix", path: master.task.socket });
    const hello = { protocol: PROTOCOL + 1, machine: "m", bytes: 1 };
    await new FrameWriter(conn).sendJson(KIND.hello, hello);
    assert.equal((await new FrameReader(conn).next())?.kind, KIND.refused);
  });
});

Deno.test("a path that is too long for a socket is none", () => {
  assert.equal(controlSocket(`/tmp/${"x".repeat(100)}`), null);
  assert.equal(controlSocket("/tmp/custom-executor0123456789")?.startsWith("/tmp/custom"), true);
});

Deno.test("whoever says something else is not answered, and disturbs nobody", () =>
  withMaster(async ({ master }) => {
    await runBy(master, "true");
    for (
      const bytes of [[], [KIND.script, 0, 0, 0, 0], [KIND.hello, 255, 0, 0, 0], [
        KIND.quit,
        0,
        0,
        0,
        1,
        33,
      ]]
    ) {
      using conn = await Deno.connect({ transport: "unix", path: master.task.socket });
      await conn.write(new Uint8Array(bytes));
      if (bytes.length > 0) {
        assert.equal(await new FrameReader(conn).next().catch(() => null), null);
      }
    }
    assert.equal(await runBy(master, "true"), 0);
  }));

Deno.test("a script that does not come whole is not run", () =>
  withMaster(async ({ guest, master }) => {
    const before = guest.commands.length;
    const text = script("touch /nonexistent/never");
    {
      using session = await master.session(text.length + 1);
      const ran = session.run(text, collector(), signal);
      ran.catch(() => {});
      await sleep(300);
    }
    await sleep(300);
    assert.equal(guest.commands.length, before);
    assert.equal(await runBy(master, "true"), 0);
  }));

Deno.test("a master ends when it is told to, with its machine's name or its domain's", async () => {
  for (const name of ["m", "standby-1"]) {
    await withMaster(async ({ master }) => {
      await runBy(master, "true");
      await endMaster(master.task.socket, name);
      assert(!await isThere(master.task.socket));
      await master.ended;
    }, { task: { domain: "standby-1" } });
  }
});

Deno.test("a master ends at its deadline", () =>
  withMaster(({ master }) => master.ended, { task: { deadline: Date.now() + 1000 } }));

Deno.test("a master ends when its socket is gone, or another's", async () => {
  for (const replace of [false, true]) {
    await withMaster(async ({ master: { task: { socket }, ended } }) => {
      while (!await isThere(socket)) await sleep(10);
      await Deno.remove(socket);
      if (replace) await Deno.writeTextFile(socket, "");
      await ended;
      if (replace) await Deno.remove(socket).catch(() => {}); // Deno itself may have removed it
    });
  }
});

Deno.test("a master that ends has its scripts end, and none of them passes", () =>
  withMaster(async ({ master }) => {
    const mark = newMark();
    const ran = runBy(master, `sleep ${mark}; true`);
    ran.catch(() => {});
    await untilProcesses(mark, 1);
    await endMaster(master.task.socket, "m");
    await assert.rejects(ran, /connection to the guest broke/);
    await untilProcesses(mark, 0);
  }));

Deno.test("a master says whether a script has failed", () =>
  withMaster(async ({ master }) => {
    const hasFailed = async (): Promise<boolean> => {
      using session = await master.session(0);
      return session.known.hasFailed;
    };
    await runBy(master, "true");
    assert.equal(await hasFailed(), false);
    await runBy(master, "exit 1");
    await runBy(master, "true");
    assert.equal(await hasFailed(), true);
  }));

Deno.test("a master's process that is killed amid a script is a lost guest, and its socket leads nowhere", async () => {
  const directory = makeAttemptDir();
  await using guest = await TestGuest.start();
  await using master = await MasterProcess.start(guest, masterTask(directory));
  const text = script("echo begun; sleep 30");
  using session = await findMaster(master.task.socket, { machine: "m", bytes: text.length });
  assert(session !== null);
  const begun = Promise.withResolvers<void>();
  const stdout = () => Promise.resolve(begun.resolve());
  const ran = session.run(text, { ...collector(), stdout }, signal);
  ran.catch(() => {});
  await begun.promise;
  master.child.kill("SIGKILL");
  await assert.rejects(ran, (error) => {
    assert.equal(faultOf(error), "lost");
    assert.match(explain(error), /broke while the script ran\nbecause: its master has ended\n/);
    return true;
  });
  assert(await isThere(master.task.socket));
  assert.equal(await findMaster(master.task.socket, { machine: "m", bytes: 1 }), null);
  await endMaster(master.task.socket, "m");
  await Deno.remove(directory, { recursive: true });
});

Deno.test("a master's process ends by SIGTERM, and leaves nothing", async () => {
  const directory = makeAttemptDir();
  await using guest = await TestGuest.start();
  await using master = await MasterProcess.start(guest, masterTask(directory));
  master.child.kill("SIGTERM");
  assert.equal((await master.child.status).code, 0);
  await Deno.remove(directory);
});

Deno.test("a master's process that is told nothing ends", async () => {
  const { success } = await new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--quiet",
      "--allow-all",
      new URL("../../main.ts", import.meta.url).pathname,
      MASTER_ARGUMENT,
    ],
    stdin: "null",
  }).output();
  assert(success);
});
