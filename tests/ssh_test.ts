// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { makeKeyPair } from "../src/guest/key.ts";
import { waitForSsh } from "../src/guest/ready.ts";
import { type Login, SshConnection } from "../src/guest/ssh.ts";
import { sleep } from "../src/wait.ts";
import { TestGuest, type TestGuestOptions } from "./test_guest.ts";

async function withGuest(
  test: (login: Login) => Promise<void>,
  options: TestGuestOptions = {},
): Promise<void> {
  await using guest = await TestGuest.start(options);
  const { port, privateKey } = guest;
  await test({
    ...{ address: "127.0.0.1", port, user: "gitlab-runner", privateKey },
    ...{ channel: null, hostKey: null },
  });
}

const options = { timeoutMs: 5000, signal: new AbortController().signal };

Deno.test("a login waits with its key until the guest knows it", () =>
  withGuest(async (login) => {
    const known = Promise.withResolvers<void>();
    let isOpen = false;
    const opening = SshConnection.open({ ...login, keyKnown: known.promise }, options)
      .then((ssh) => {
        isOpen = true;
        ssh[Symbol.dispose]();
      });
    await sleep(300);
    assert(!isOpen);
    known.resolve();
    await opening;
  }));

Deno.test("a login ends at once when the guest will never know the key", () =>
  withGuest(async (login) => {
    const start = performance.now();
    const keyKnown = sleep(300).then(() => Promise.reject(new Error("no agent")));
    await assert.rejects(SshConnection.open({ ...login, keyKnown }, options));
    assert(performance.now() - start < 2000);
  }));

Deno.test("a key that the guest refuses is offered once", () =>
  withGuest(async (login) => {
    const start = performance.now();
    await assert.rejects(SshConnection.open(login, options), /refuses the key/);
    assert(performance.now() - start < 2000);
  }, { refuseKey: true }));

Deno.test("SSH is tried on while libvirt does not say whether the machine has ended", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr as Deno.NetAddr;
  let attempts = 0;
  const closing = (async () => {
    for await (const connection of listener) {
      attempts++;
      connection.close();
    }
  })();
  const login = { address: "127.0.0.1", port, user: "gitlab-runner", channel: null, hostKey: null };
  const { privateKey } = await makeKeyPair();
  let asked = 0;
  const refuseEnded = async () => {
    asked++;
    await sleep(500);
    throw new Error("it has ended");
  };
  const limits = { timeoutSeconds: 60, signal: options.signal, log: () => {} };
  await assert.rejects(waitForSsh({ ...login, privateKey }, refuseEnded, limits), /it has ended/);
  assert.equal(asked, 1);
  assert(attempts > 2, `${attempts} attempts`);
  listener.close();
  await closing;
});

Deno.test("no server chooses a key exchange that it makes costly", () =>
  withGuest(async (login) => {
    await assert.rejects(SshConnection.open(login, options), /no matching key exchange algorithm/);
  }, { kex: ["diffie-hellman-group-exchange-sha256"] }));
