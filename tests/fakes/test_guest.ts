// SPDX-License-Identifier: GPL-2.0-or-later
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
// @ts-types="@types/ssh2"
import ssh2 from "ssh2";
import type { Connection, KexAlgorithm, ServerChannel, Session } from "ssh2";
import type { Login } from "../../src/guest/ssh_connection.ts";
import { type Flood, floodClient, sendPayload } from "./flood.ts";
import { killGroup } from "../harness/process.ts";

/** The user's directory for a session in a guest with `full`. */
export const RUNTIME_DIR = "/var/tmp";

/** How a {@linkcode TestGuest} misbehaves. */
export interface TestGuestOptions {
  /** Refuse every key. */
  readonly refuseKey?: boolean;
  /** The only key exchanges that it offers. */
  readonly kex?: readonly KexAlgorithm[];
  /** Close the connection when a script comes, without an exit status. */
  readonly loseScripts?: boolean;
  /** Close it when a script has ended, before its exit status is told. */
  readonly loseStatus?: boolean;
  /** Let in, and never answer a command. */
  readonly ignoreCommands?: boolean;
  /** Send this packet of SSH in place of running a script, given its channel's number, and hang up. */
  readonly packet?: (channel: number) => Uint8Array;
  /** Instead of running a command, flood the client. */
  readonly flood?: Flood;
  /** Directories that each command finds full, as root alone can show them. */
  readonly full?: readonly string[];
  /** How many sessions a connection may have at once, as MaxSessions of sshd_config(5). */
  readonly maxSessions?: number;
  /** Listen at this UNIX socket instead, whose buffers are small. */
  readonly path?: string;
}

/**
 * A guest without a virtual machine: an SSH server on all addresses of 127.0.0.0/8 that runs commands
 * on this host, as sshd does. It stops with its connections and processes when it is disposed of.
 */
export class TestGuest implements AsyncDisposable {
  /** What the commands got on their standard input. */
  readonly inputs: string[] = [];
  /** The command lines. */
  readonly commands: string[] = [];
  /** The users whom a client said it was. */
  readonly logins: string[] = [];
  /** How many connections it has let in. */
  letIn = 0;
  /** The sizes that terminals had, one after another. */
  readonly terminals: string[] = [];
  /** A private key that it lets in. */
  readonly privateKey: string;
  readonly port: number;
  readonly #listener: Server;
  readonly #connections = new Set<Connection>();
  readonly #sockets = new Set<Socket>();
  readonly #children = new Set<Deno.ChildProcess>();
  readonly #running = new Set<Promise<void>>();
  readonly #options: TestGuestOptions;
  #isSuspended = false;
  readonly #flooded = Promise.withResolvers<void>();

  private constructor(listener: Server, privateKey: string, options: TestGuestOptions) {
    this.#listener = listener;
    this.#options = options;
    this.privateKey = privateKey;
    this.port = (listener.address() as Partial<AddressInfo>).port ?? 0;
    const { kex } = options;
    const algorithms = kex && { algorithms: { kex: [...kex] } };
    const ident = "OpenSSH_9.9"; // of which ssh2 takes what it takes of no other
    const own = { ident, keepaliveInterval: 1e9 }; // sshd asks for no sign of life either
    const server = new ssh2.Server({ hostKeys: [generateKey()], ...own, ...algorithms });
    server.on("connection", (connection) => this.#serve(connection));
    listener.on("connection", (socket) => {
      socket.setNoDelay(true); // as sshd does; Nagle's algorithm costs 40 ms a step
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
      if (!this.#isSuspended) server.injectSocket(socket);
    });
  }

  static async start(options: TestGuestOptions = {}): Promise<TestGuest> {
    const listener = createServer();
    const { promise, resolve } = Promise.withResolvers<void>();
    if (options.path === undefined) listener.listen(0, "0.0.0.0", resolve);
    else listener.listen(options.path, resolve);
    await promise;
    return new TestGuest(listener, generateKey(), options);
  }

  /** How a client logs in on 127.0.0.1. It takes any host key. */
  get login(): Login {
    const { port, privateKey } = this;
    return {
      address: "127.0.0.1",
      port,
      user: "gitlab-runner",
      privateKey,
      channel: null,
      hostKey: null,
    };
  }

  /** Resolves when it has flooded a client. */
  get flooded(): Promise<void> {
    return this.#flooded.promise;
  }

  /** Ends all connections and processes at once, as a guest does that loses its power. */
  cutPower(): void {
    for (const connection of this.#connections) connection.end();
    for (const { pid } of this.#children) killGroup(pid, "SIGKILL");
  }

  /** Takes nothing more from its clients, old or new, as a guest that is suspended. */
  suspend(): void {
    this.#isSuspended = true;
    this.standStill();
  }

  /** Takes nothing more from the clients that it has. */
  standStill(): void {
    for (const socket of this.#sockets) socket.pause();
  }

  /** Forgets what it got, for a test that measures memory. */
  forget(): void {
    for (const list of [this.inputs, this.commands, this.logins, this.terminals]) list.length = 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cutPower();
    await Promise.all(this.#running);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#listener.close(() => resolve());
    for (const socket of this.#sockets) socket.destroy();
    await promise;
    for (const [file] of this.commands.join().matchAll(/\.libvirt-gci-[0-9a-f]+/g)) {
      await Deno.remove(`/dev/shm/${file}`).catch(() => {}); // of a script whose session was killed
    }
  }

  #serve(connection: Connection): void {
    this.#connections.add(connection);
    connection.on("close", () => this.#connections.delete(connection));
    connection.on("error", () => {});
    connection.on("ready", () => this.letIn++);
    connection.on("authentication", (context) => {
      this.logins.push(context.username);
      const known = context.method === "publickey" && !this.#options.refuseKey;
      if (known) context.accept();
      else context.reject(["publickey"]);
    });
    const { maxSessions = Infinity } = this.#options;
    let sessions = 0;
    connection.on("session", (accept, reject) => {
      if (sessions >= maxSessions) return reject();
      const session = accept();
      sessions++;
      session.on("close", () => sessions--);
      this.#serveSession(session, connection);
    });
  }

  #serveSession(session: Session, connection: Connection): void {
    const { ignoreCommands, loseScripts, flood } = this.#options;
    session.on("pty", (accept, _reject, { cols, rows }) => {
      this.terminals.push(`${cols}x${rows}`);
      accept?.();
    });
    session.on("window-change", (accept, _reject, { cols, rows }) => {
      this.terminals.push(`${cols}x${rows}`);
      accept?.();
    });
    session.on("shell", (accept) => {
      this.#track(this.#exec(accept(), "exec sh", connection));
    });
    session.on("exec", (accept, _reject, { command }) => {
      if (ignoreCommands) return;
      if (flood !== undefined) {
        if (flood.kind !== "early") accept();
        this.commands.push(command);
        const flooding = floodClient(flood, connection, session);
        this.#track(flooding.then(() => this.#flooded.resolve()));
        return;
      }
      const channel = accept();
      this.commands.push(command);
      const { packet } = this.#options;
      if (packet && command !== "exit 0") {
        const { outgoing } = channel as unknown as { readonly outgoing: { readonly id: number } };
        sendPayload(connection, packet(outgoing.id));
        return connection.end();
      }
      if (loseScripts && command !== "exit 0") return connection.end();
      this.#track(this.#exec(channel, command, connection));
    });
  }

  #track(running: Promise<void>): void {
    this.#running.add(running);
    running.then(() => this.#running.delete(running));
  }

  async #exec(channel: ServerChannel, command: string, connection: Connection): Promise<void> {
    const { full } = this.#options;
    const [program, ...args] = [...full ? withFull(full) : [], "/bin/sh", "-c", command] as const;
    const child = new Deno.Command(program, {
      args,
      detached: true,
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    this.#children.add(child);
    channel.on("error", () => {});
    const turns = new Turns();
    const output = [
      pump(child.stdout, channel, turns),
      pump(child.stderr, channel.stderr, turns),
    ];
    this.#feed(channel, child.stdin);
    const { code, signal } = await child.status;
    if (this.#options.loseStatus && command !== "exit 0") connection.end();
    else if (signal !== null) channel.exit(signal.replace("SIG", ""));
    else channel.exit(code);
    await Promise.all(output); // which processes that it left behind may hold open
    this.#children.delete(child);
    channel.end();
  }

  async #feed(channel: ServerChannel, stdin: WritableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    let input = "";
    const writer = stdin.getWriter();
    try {
      for await (const bytes of channel.iterator({ destroyOnReturn: false })) {
        input += decoder.decode(bytes, { stream: true });
        await writer.write(new Uint8Array(bytes));
      }
    } catch {
      // The command ended before it had read all.
    }
    this.inputs.push(input);
    await writer.close().catch(() => {});
  }
}

/** What runs a command in a view of its own of the file systems, where these directories are full. */
function withFull(directories: readonly string[]): readonly [string, ...string[]] {
  const fill = `for directory in ${directories.join(" ")}; do
    mount -t tmpfs -o size=4k,mode=1777 tmpfs "$directory"
    head -c 4096 /dev/zero >"$directory/full"
  done
  export XDG_RUNTIME_DIR=${RUNTIME_DIR}; exec "$@"`;
  return ["unshare", "--mount", "sh", "-ec", fill, "sh"];
}

/** Has what is given one after another. */
class Turns {
  #last: Promise<void> = Promise.resolve();

  take(turn: () => Promise<void>): Promise<void> {
    return this.#last = this.#last.then(turn);
  }
}

/**
 * Passes the bytes on, no faster than the client takes them. Only one stream of a channel writes at a time:
 * where both wait for the client's window, ssh2 forgets one of them when it opens.
 */
async function pump(
  from: ReadableStream<Uint8Array>,
  to: NodeJS.WritableStream,
  turns: Turns,
): Promise<void> {
  const closed = new Promise<void>((resolve) => to.once("close", resolve));
  for await (const bytes of from) {
    await turns.take(() => {
      const written = new Promise<void>((resolve) => to.write(bytes, () => resolve()));
      return Promise.race([written, closed]);
    });
  }
}

/** A private key. One in some hundreds of those that ssh2 makes is malformed. */
function generateKey(): string {
  for (;;) {
    const key = ssh2.utils.generateKeyPairSync("ed25519").private;
    if (!(ssh2.utils.parseKey(key) instanceof Error)) return key;
  }
}
