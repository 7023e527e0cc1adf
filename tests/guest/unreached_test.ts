// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { explain } from "../../src/errors.ts";
import { makeKeyPair } from "../../src/guest/key.ts";
import { openSsh } from "../../src/guest/ready.ts";
import { SshConnection } from "../../src/guest/ssh_connection.ts";
import { whyUnreached } from "../../src/guest/unreached.ts";
import { canBeNobody } from "../fakes/test_nobody.ts";

/** The failure for a machine at this address that cannot be logged in to. */
async function toldOf(address: string, port: number, timeoutSeconds = 0.2): Promise<string> {
  const { privateKey } = await makeKeyPair();
  const login = { address, port, user: "u", privateKey, channel: null, hostKey: null };
  const { signal } = new AbortController();
  const opened = openSsh(login, { timeoutSeconds, signal, log: () => {} });
  return explain(await opened.catch((error) => error));
}

/** What is said of a server that does this with each connection. */
async function toldOfServer(serve: (connection: Deno.TcpConn) => void): Promise<string> {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const serving = (async () => {
    for await (const connection of listener) serve(connection);
  })();
  const told = await toldOf("127.0.0.1", (listener.addr as Deno.NetAddr).port);
  listener.close();
  await serving;
  return told;
}

/** Asserts what the machine does, that no name of an error is in it, and that there is something to do. */
function assertTold(told: string, does: RegExp, advice: RegExp): void {
  assert.match(told, does);
  assert.match(told, advice);
  assert.doesNotMatch(told, /\bE[A-Z]{4,}|os error|connect /);
}

Deno.test("a machine that refuses connections is said to, with what to do about its SSH server", async () => {
  const does = /^The machine did not accept .* port 1 within 0.2 s: it refuses the connection$/m;
  assertTold(
    await toldOf("127.0.0.1", 1),
    does,
    /^What to do: Start an SSH server on port 1 /m,
  );
});

Deno.test("a machine that closes each connection is said to", async () => {
  const told = await toldOfServer((connection) => connection.close());
  assertTold(told, /: it closes the connection at once$/m, /^What to do: Check .* SSH server/m);
});

Deno.test("a machine that resets each connection is said to close it", async () => {
  const reset = (connection: Deno.TcpConn): void => {
    // What was sent and not read makes Linux answer with a reset.
    setTimeout(() => connection.close(), 50);
  };
  assertTold(
    await toldOfServer(reset),
    /: it closes the connection at once$/m,
    /^What to do: Check /m,
  );
});

Deno.test("a machine whose SSH server says nothing is told from one that does not answer", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 }); // the kernel takes connections
  const { port } = listener.addr as Deno.NetAddr;
  const { privateKey } = await makeKeyPair();
  const login = { address: "127.0.0.1", port, user: "u", privateKey, channel: null, hostKey: null };
  const { signal } = new AbortController();
  const opened = SshConnection.open(login, { timeoutMs: 200, signal });
  const { reason, failure } = await whyUnreached(await opened.catch((error) => error), login);
  const told = `: ${reason}\nWhat to do: ${failure.advice}`;
  assertTold(
    told,
    /: it accepts the connection, but its SSH server does not answer$/m,
    /: Check .* console/,
  );
});

const NETWORK = `
  ip link set lo up
  ip link add br0 type bridge
  ip address add 192.0.2.1/24 dev br0
  ip link set br0 up
  ip route add prohibit 198.51.100.7
`;

/** As {@linkcode toldOf}, in a network whose machines do not answer, as if their links were down. */
async function toldInNetwork(address: string, timeoutSeconds: number): Promise<string> {
  const code = `
    import { explain } from "${import.meta.resolve("../../src/errors.ts")}";
    import { makeKeyPair } from "${import.meta.resolve("../../src/guest/key.ts")}";
    import { openSsh } from "${import.meta.resolve("../../src/guest/ready.ts")}";
    const { privateKey } = await makeKeyPair();
    const others = { user: "u", privateKey, channel: null, hostKey: null };
    const login = { address: "${address}", port: 22, ...others };
    const limits = { timeoutSeconds: ${timeoutSeconds}, log: () => {} };
    const { signal } = new AbortController();
    console.log(explain(await openSsh(login, { ...limits, signal }).catch((error) => error)));
    Deno.exit();
  `;
  const config = new URL("../../deno.json", import.meta.url).pathname;
  const program = [Deno.execPath(), "eval", "--quiet", "--config", config, code];
  const { stdout, stderr } = await new Deno.Command("unshare", {
    args: ["--net", "sh", "-ec", `${NETWORK} exec "$@"`, "sh", ...program],
  }).output();
  assert.equal(new TextDecoder().decode(stderr), "");
  return new TextDecoder().decode(stdout);
}

for (
  const [when, seconds] of [
    ["before the kernel gives up", 0.5],
    ["when the kernel has given up", 6],
  ] as const
) {
  Deno.test({
    name: `a machine whose link is down does not answer, and does not refuse: ${when}`,
    ignore: !canBeNobody,
    fn: async () => {
      const told = await toldInNetwork("192.0.2.9", seconds);
      assertTold(
        told,
        /: it does not answer$/m,
        /^What to do: Check .* console.* network may be down/m,
      );
    },
  });
}

Deno.test({
  name: "that the host itself has no way to a machine is not the machine's fault",
  ignore: !canBeNobody,
  fn: async () => {
    for (const address of ["203.0.113.7", "198.51.100.7"]) { // no route, and one that forbids
      const told = await toldInNetwork(address, 0.2);
      const advice = new RegExp(`^What to do: Check .*: ip route get ${address};`, "m");
      assertTold(told, /: this host cannot reach it$/m, advice);
    }
  },
});
