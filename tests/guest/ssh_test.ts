// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { explain } from "../../src/errors.ts";
import { makeKeyPair } from "../../src/guest/key.ts";
import { waitForSsh } from "../../src/guest/ready.ts";
import { runScript } from "../../src/guest/script.ts";
import { type Login, SshConnection } from "../../src/guest/ssh_connection.ts";
import { toVisible } from "../../src/quoted.ts";
import { NotYet, sleep } from "../../src/wait.ts";
import { TestGuest, type TestGuestOptions } from "../fakes/test_guest.ts";

async function withGuest(
  test: (login: Login) => Promise<void>,
  options: TestGuestOptions = {},
): Promise<void> {
  await using guest = await TestGuest.start(options);
  await test(guest.login);
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

Deno.test("a command on a connection that is closed fails once, and not again later", () =>
  withGuest(async (login) => {
    const ssh = await SshConnection.open(login, options);
    ssh[Symbol.dispose]();
    const sink = () => Promise.resolve();
    const command = { input: new Uint8Array(), stdout: sink, stderr: sink };
    await assert.rejects(ssh.run("true", command), /Not connected|closed/);
    await sleep(200); // when the socket is closed, there is no listener left
  }));

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

/** Words by which a server would say what we do, hide it, and go on for ever. */
const FORGED = "bye\r\nlibvirt-gci: all is well\nWhat to do: rm -rf /\u2028libvirt-gci: x" +
  "\x1b[8m\x9b2J\u202e\x07" + "long ".repeat(4000);

/** A packet of SSH (RFC 4253 and 4254): numbers of a byte or, as bigint, of four, and strings. */
function packet(...parts: readonly (number | bigint | string)[]): Uint8Array {
  const number = (value: bigint): number[] =>
    [24n, 16n, 8n, 0n].map((bits) => Number(value >> bits & 255n));
  return Uint8Array.from(parts.flatMap((part) => {
    if (typeof part === "number") return [part];
    if (typeof part === "bigint") return number(part);
    const bytes = [...new TextEncoder().encode(part)];
    return [...number(BigInt(bytes.length)), ...bytes];
  }));
}

for (
  const [what, ours, words] of [
    [
      "the name of a signal",
      1,
      (channel) => packet(98, BigInt(channel), "exit-signal", 0, FORGED, 0, "", ""),
    ],
    ["why it disconnects", 2, () => packet(1, 2n, FORGED, "")],
  ] as const satisfies readonly (readonly [string, number, TestGuestOptions["packet"]])[]
) {
  Deno.test(`what a server says as ${what} is short, visible, and no line of ours`, () =>
    withGuest(async (login) => {
      using ssh = await SshConnection.open(login, options);
      const ignore = (): Promise<void> => Promise.resolve();
      const script = { text: new TextEncoder().encode("true"), shell: "sh" as const };
      const ran = runScript(ssh, { ...script, stdout: ignore, stderr: ignore }, options.signal);
      assertNoneOfOurs(explain(await ran.catch((error) => error)), ours);
    }, { packet: words }));
}

Deno.test("what is waited for of a guest is told in words that are short, visible, and no line of ours", () => {
  assertNoneOfOurs(`Still waiting: ${new NotYet(FORGED).reason}`, 1);
});

Deno.test("what one process has said of a guest, another says in the same words", () => {
  const { reason } = new NotYet("it closes: \n bye\n\n  and gone");
  assert.equal(reason, "it closes:\n   bye\n  and gone");
  assert.equal(new NotYet(reason).reason, reason);
});

/** Asserts that only so many lines look like ours, the advice apart. */
function assertNoneOfOurs(words: string, ours: number): void {
  const printed = toVisible(words);
  assert.doesNotMatch(printed.replaceAll("\n", ""), /[\p{C}\u2028]/u);
  assert.match(printed, /bye/);
  const lines = printed.split("\n").filter((line) => !line.startsWith(" "));
  const advice = "What to do: Check the end of its serial console";
  assert.equal(lines.filter((line) => !line.startsWith(advice)).length, ours, printed);
  assert(printed.length < 3000, `${printed.length} characters`);
}
