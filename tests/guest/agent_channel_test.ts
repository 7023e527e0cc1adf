// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";
// @ts-types="@types/ssh2"
import ssh2 from "ssh2";
import type { Agent } from "../../src/guest/agent.ts";
import { openChannel } from "../../src/guest/channel.ts";
import { SshConnection } from "../../src/guest/ssh_connection.ts";
import { NotYet, waitFor } from "../../src/wait.ts";

const NAME = "org.libvirt-gci.ssh.0";
const PID = 42;

/** What the agent is asked to run. */
interface Exec {
  readonly path: string;
  readonly arg: readonly string[];
  readonly "input-data": string;
}

/** The host's end of a channel, as QEMU has it, without a guest. */
class TestChannel implements AsyncDisposable {
  readonly #directory: string;
  readonly #server: Server;
  readonly #sockets: Socket[] = [];

  private constructor(directory: string) {
    this.#directory = directory;
    this.#server = createServer((socket) => this.#sockets.push(socket.on("error", () => {})));
  }

  static async create(): Promise<TestChannel> {
    const channel = new TestChannel(await Deno.makeTempDir());
    await once(channel.#server.listen(channel.path), "listening");
    return channel;
  }

  get path(): string {
    return `${this.#directory}/${NAME}`;
  }

  /** The connection that QEMU would serve: the last. */
  async socket(): Promise<Socket> {
    const last = this.#sockets.at(-1);
    if (last !== undefined && !last.destroyed) return last;
    await once(this.#server, "connection");
    return await this.socket();
  }

  open(agent: Agent, signal = new AbortController().signal): ReturnType<typeof openChannel> {
    const channel = { agent, name: NAME, socketPath: this.path };
    return openChannel(channel, { timeoutMs: 10_000, signal });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await once(this.#server.close(), "close");
    await Deno.remove(this.#directory, { recursive: true });
  }
}

/** An agent that gives `serve` the token of a server to start, and says how that ended. */
function testAgent(
  serve: (token: string) => Promise<void> | void,
  status: object = { exited: false },
): Agent {
  return async (command) => {
    const { execute, arguments: args } = command as { execute: string; arguments: Exec };
    if (execute !== "guest-exec") return status;
    await serve(args.arg[2] ?? "");
    return { pid: PID };
  };
}

/** An agent that starts a server which greets and then says nothing. */
function greetingAgent(channel: TestChannel): Agent {
  return testAgent(async (token) => {
    (await channel.socket()).write(`${token}\nSSH-2.0-test\r\n`);
  });
}

/** An agent of a guest that is this host, but for its exit status it waits. */
function hostAgent(): Agent {
  let ended: object = { exited: false };
  return async (command) => {
    const { execute, arguments: args } = command as { execute: string; arguments: Exec };
    if (execute !== "guest-exec") return ended;
    const child = new Deno.Command(args.path, {
      args: [...args.arg],
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const input = new Blob([atob(args["input-data"])]).stream();
    const fed = input.pipeTo(child.stdin).catch(() => {}); // it need not read to the end
    const { code, stderr } = await child.output();
    await fed;
    ended = { exited: true, exitcode: code, "err-data": stderr.toBase64() };
    return { pid: PID };
  };
}

/** A private key. One in some hundreds of those that ssh2 makes is malformed. */
function generateKey(): string {
  for (;;) {
    const key = ssh2.utils.generateKeyPairSync("ed25519").private;
    if (!(ssh2.utils.parseKey(key) instanceof Error)) return key;
  }
}

/** An SSH server that lets everybody in and ends each command, after this output, with the status 7. */
function sshServer(output: (command: string) => string | Uint8Array): ssh2.Server {
  return new ssh2.Server({ hostKeys: [generateKey()] }, (connection) => {
    connection.on("error", () => {});
    connection.on("authentication", (context) => context.accept());
    connection.on("session", (accept) => {
      accept().on("exec", (accept, _reject, { command }) => {
        const channel = accept();
        channel.write(output(command));
        channel.exit(7);
        channel.end();
      });
    });
  });
}

Deno.test("a channel leads to the guest's SSH server, past what an earlier one left", async () => {
  await using channel = await TestChannel.create();
  const server = sshServer((command) => `ran ${command}`);
  const sock = await channel.open(testAgent(async (token) => {
    const socket = await channel.socket();
    socket.write(`SSH-2.0-stale\r\n${"0".repeat(32)}\nSSH-2.0-stale ${token}\n`);
    server.injectSocket(socket);
  }));
  assert(!(sock instanceof NotYet));

  const client = new ssh2.Client();
  const { promise: closed, resolve: close } = Promise.withResolvers<void>();
  const { promise: ended, resolve: end, reject } = Promise.withResolvers<string>();
  client.on("error", reject);
  client.on("close", close);
  client.on("ready", () =>
    client.exec("make", (error, stream) => {
      if (error) return reject(error);
      let output = "", status = -1;
      stream.on("data", (bytes: Uint8Array) => output += new TextDecoder().decode(bytes));
      stream.on("exit", (code: number) => status = code);
      stream.on("close", () => end(`${output}, status ${status}`));
    }));
  client.connect({ sock, username: "ci", password: "any" });
  assert.equal(await ended, "ran make, status 7");
  client.destroy();
  await closed;
});

Deno.test("what comes fast through a channel arrives whole", async () => {
  await using channel = await TestChannel.create();
  const server = sshServer(() => new Uint8Array(32_000_000));
  const sock = await channel.open(testAgent(async (token) => {
    const socket = await channel.socket();
    socket.write(`${token}\n`);
    server.injectSocket(socket);
  }));
  assert(!(sock instanceof NotYet));

  const login = { address: "channel", port: 0, user: "ci", privateKey: generateKey() };
  const options = { timeoutMs: 10_000, signal: new AbortController().signal, sock };
  using ssh = await SshConnection.open({ ...login, channel: null, hostKey: null }, options);
  let bytes = 0;
  const stdout = (part: Uint8Array): Promise<void> => Promise.resolve(void (bytes += part.length));
  const end = await ssh.run("make", { input: new Uint8Array(), stdout, stderr: stdout });
  assert.deepEqual({ ...end, bytes }, { status: 7, signal: null, bytes: 32_000_000 });
});

Deno.test("a channel has one connection at a time", async () => {
  await using channel = await TestChannel.create();
  const agent = greetingAgent(channel);
  const first = await channel.open(agent);
  assert(!(first instanceof NotYet));

  const second = await channel.open(agent);
  assert(second instanceof NotYet);
  assert.match(second.reason, /another connection/);

  await once(first.destroy(), "close");
  const third = await channel.open(agent);
  assert(!(third instanceof NotYet));
  third.destroy();
});

Deno.test("a channel breaks when the guest's SSH server ends, after its last words", async () => {
  await using channel = await TestChannel.create();
  let token = "";
  const stream = await channel.open(testAgent(async (given) => {
    token = given;
    (await channel.socket()).write(`${token}\nSSH-2.0-test\r\n`);
  }));
  assert(!(stream instanceof NotYet));

  (await channel.socket()).write(`the last words${token}\n`);
  let words = "";
  stream.on("data", (bytes: Uint8Array) => words += new TextDecoder().decode(bytes));
  const [error] = await once(stream.resume(), "error");
  assert.match(error.message, /SSH server ended/);
  assert.match(words, /^SSH-2.0-test\r\nthe last words/);
});

Deno.test("an agent that does not run yet is waited for", async () => {
  await using channel = await TestChannel.create();
  const words = "Guest agent is not responding: QEMU guest agent is not connected";
  const result = await channel.open(() => Promise.reject(new Error(words)));
  assert(result instanceof NotYet);
  assert.equal(result.reason, words);
});

Deno.test("an agent that may not run commands is not waited for", async () => {
  await using channel = await TestChannel.create();
  const words = "unable to execute QEMU agent command 'guest-exec': " +
    "Command guest-exec has been disabled";
  const opened = channel.open(() => Promise.reject(new Error(words)));
  await assert.rejects(opened, { name: "SystemFailure", advice: /guest-exec.*FILTER_RPC_ARGS/ });
});

Deno.test("an SSH server that cannot start yet is waited for", async () => {
  await using channel = await TestChannel.create();
  const status = { exited: true, exitcode: 1, "err-data": btoa("no hostkeys available\n") };
  const result = await channel.open(testAgent(() => {}, status));
  assert(result instanceof NotYet);
  assert.equal(result.reason, "no hostkeys available");
});

Deno.test("what a guest's SSH server says of its end is short, and in one line", async () => {
  await using channel = await TestChannel.create();
  const words = `no\nlibvirt-gci: all is well\n${"long ".repeat(8000)}the end`;
  const status = { exited: true, exitcode: 69, "err-data": btoa(words) };
  await assert.rejects(channel.open(testAgent(() => {}, status)), ({ message }: Error) => {
    assert.match(message, /^The guest cannot serve SSH through a channel: [^\n]{1,500}the end$/);
    return true;
  });
});

Deno.test("a guest without the channel's port is not waited for", async () => {
  await using channel = await TestChannel.create();
  await assert.rejects(channel.open(hostAgent()), {
    name: "SystemFailure",
    message: new RegExp(`no virtio port ${NAME}`),
  });
});

Deno.test("a channel that is not there is no reason to wait", async () => {
  const socketPath = "/nonexistent/channel";
  const { signal } = new AbortController();
  const opened = openChannel({ agent: hostAgent(), name: NAME, socketPath }, {
    timeoutMs: 1000,
    signal,
  });
  await assert.rejects(opened, { name: "SystemFailure", message: /"\/nonexistent\/channel"/ });
});

Deno.test("a cancelled job does not wait for the channel, which the next one gets", async () => {
  await using channel = await TestChannel.create();
  const cancel = new AbortController();
  const opened = channel.open(testAgent(() => cancel.abort(new Error("cancelled"))), cancel.signal);
  await assert.rejects(opened, { message: "cancelled" });

  const next = await waitFor({
    goal: "greet",
    awaited: "it",
    advice: "",
    fault: "ssh_timeout" as const,
    probe: () => channel.open(greetingAgent(channel)),
  }, { timeoutSeconds: 10, signal: new AbortController().signal, log: () => {} });
  next.destroy();
});
