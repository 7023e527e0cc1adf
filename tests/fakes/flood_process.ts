// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * A process of its own that runs a script on a hostile guest and writes its output to stdout, for
 * tests/guest/flood_test.ts. The argument is the guest's port or UNIX socket, and its private key comes on
 * stdin.
 */
import { createConnection } from "node:net";
import { runScript } from "../../src/guest/script.ts";
import { SshConnection } from "../../src/guest/ssh_connection.ts";

const [port = ""] = Deno.args;
const sock = port.startsWith("/") ? createConnection({ path: port }) : undefined;
const login = {
  address: "127.0.0.1",
  port: Number(port),
  user: "gitlab-runner",
  privateKey: await new Response(Deno.stdin.readable).text(),
  channel: null,
  hostKey: null,
};
const { signal } = new AbortController();
using ssh = await SshConnection.open(login, { timeoutMs: 15_000, signal, sock });
const sink = async (bytes: Uint8Array): Promise<void> => {
  for (let at = 0; at < bytes.length;) at += await Deno.stdout.write(bytes.subarray(at));
};
const text = new TextEncoder().encode("true");
await runScript(ssh, { text, shell: "sh", stdout: sink, stderr: sink }, signal);
