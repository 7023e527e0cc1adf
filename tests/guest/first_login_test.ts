// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { faultOf } from "../../src/errors.ts";
import { findMaster } from "../../src/guest/master/client.ts";
import { NewMaster } from "../../src/guest/master/new_master.ts";
import type { Login } from "../../src/guest/ssh_connection.ts";
import { NotYet, sleep, within } from "../../src/wait.ts";
import { TestGuest, type TestGuestOptions } from "../fakes/test_guest.ts";
import { isThere, loginTo, makeAttemptDir, masterTask, spawnMaster } from "../fakes/test_master.ts";

interface Bed {
  readonly guest: TestGuest;
  readonly login: Login;
  readonly master: NewMaster;
  readonly child: Deno.ChildProcess;
}

/** Gives the test a new master that has no task, and sees that its process ends with it. */
async function withNewMaster(
  test: (bed: Bed) => Promise<void>,
  options: TestGuestOptions = {},
): Promise<void> {
  await using guest = await TestGuest.start(options);
  const child = spawnMaster();
  {
    using master = new NewMaster(() => child);
    master.start();
    await test({ guest, login: loginTo(guest), master, child });
  }
  assert.equal((await child.status).code, 0);
}

const options = { signal: new AbortController().signal, connectMs: 5000 };

Deno.test("a master that is asked again has its connection answer, and makes another if that is lost", () =>
  withNewMaster(async ({ guest, login, master }) => {
    const hostKey = await master.tryCommand(login, options);
    assert(typeof hostKey === "string");
    const known = { ...login, hostKey };
    for (const letIn of [1, 1]) {
      assert.equal(await master.tryCommand(known, options), hostKey);
      assert.equal(guest.letIn, letIn);
    }
    guest.cutPower();
    assert.equal(await master.tryCommand(known, options), hostKey);
    assert.equal(guest.letIn, 2);
  }));

Deno.test("a master whose connection stands still makes another", () =>
  withNewMaster(async ({ guest, login, master }) => {
    const hostKey = await master.tryCommand(login, options);
    assert(typeof hostKey === "string");
    guest.standStill();
    assert.equal(await master.tryCommand({ ...login, hostKey }, options), hostKey);
    assert.equal(guest.letIn, 2);
  }));

Deno.test("a master holds no connection to another guest than the last that it was to log in to", () =>
  withNewMaster(async ({ guest, login, master }) => {
    await using other = await TestGuest.start();
    await master.tryCommand(login, options);
    assert.equal(typeof await master.tryCommand(loginTo(other), options), "string");
    assert.deepEqual([guest.letIn, other.letIn], [1, 1]);
    const wrong = await master.tryCommand({ ...login, port: 1 }, options);
    assert(wrong instanceof NotYet, "it is logged in nowhere");
    const directory = makeAttemptDir();
    const task = masterTask(directory);
    await master.give(task);
    assert(!await isThere(task.socket), "it serves without a connection");
    await Deno.remove(directory);
  }));

Deno.test("a master sends nothing to a guest that shows another host key than the known one", () =>
  withNewMaster(async ({ guest, login, master }) => {
    const known = { ...login, hostKey: "A".repeat(43) + "=" };
    const answer = await master.tryCommand(known, options);
    assert(answer instanceof NotYet);
    assert.match(answer.reason, /does not show the machine's host key/);
    assert.equal(answer.failure.fault, "host_key");
    await assert.rejects(master.tryLogin(known, options), (error) => {
      assert.equal(faultOf(error), "host_key");
      return true;
    });
    assert.deepEqual([guest.logins, guest.commands], [[], []]);
  }));

Deno.test("a master waits with its key until the guest knows it", () =>
  withNewMaster(async ({ guest, login, master }) => {
    const { promise: keyKnown, resolve } = Promise.withResolvers<void>();
    const tried = master.tryLogin({ ...login, keyKnown }, options);
    await sleep(1500);
    assert.deepEqual(guest.logins, []);
    resolve();
    assert.equal(typeof await tried, "string");
    assert.deepEqual([guest.letIn, guest.commands], [1, []]);
  }));

Deno.test("a master is told of the key before it knows that it has to log in again, and does", () =>
  withNewMaster(async ({ guest, login, master }) => {
    const keyKnown = Promise.resolve();
    const hostKey = await master.tryLogin({ ...login, keyKnown }, options);
    assert(typeof hostKey === "string");
    guest.standStill();
    const again = master.tryLogin({ ...login, hostKey, keyKnown }, options);
    assert.equal(await within(again, 8000), hostKey);
    assert.equal(guest.letIn, 2);
  }));

Deno.test("a master without a task ends by SIGTERM", () =>
  withNewMaster(async ({ login, master, child }) => {
    await master.tryCommand(login, options);
    child.kill("SIGTERM");
    assert.equal((await child.status).code, 0);
  }));

Deno.test("a master that has its task outlives who gave it, and serves at once", async () => {
  const directory = makeAttemptDir();
  const task = masterTask(directory);
  await using guest = await TestGuest.start();
  const child = spawnMaster();
  {
    using master = new NewMaster(() => child);
    master.start();
    await master.tryCommand(loginTo(guest), options);
    assert(!await isThere(task.socket), "it serves before the machine is ready");
    await master.give(task);
    assert(await isThere(task.socket));
  }
  await sleep(300);
  {
    using session = await findMaster(task.socket, { machine: "m", bytes: 0 });
    assert(session !== null);
  }
  child.kill("SIGTERM");
  assert.equal((await child.status).code, 0);
  await Deno.remove(directory);
});

Deno.test("a master without a task ends when whoever started it is killed, also while it logs in", async () => {
  await using guest = await TestGuest.start({ ignoreCommands: true });
  const child = spawnMaster();
  const master = new NewMaster(() => child);
  master.start();
  const killed = new AbortController();
  const tried = master.tryCommand(loginTo(guest), { ...options, signal: killed.signal });
  tried.catch(() => {});
  while (guest.letIn === 0) await sleep(20);
  const start = performance.now();
  killed.abort(new Error("killed")); // which closes the pipes, as the end of a process does
  await assert.rejects(tried, /killed/);
  assert.equal((await child.status).code, 0);
  assert(performance.now() - start < 5000);
});
