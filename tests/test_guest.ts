// SPDX-License-Identifier: GPL-2.0-or-later
import { type ChildProcess, spawn } from "node:child_process";
import type { AddressInfo } from "node:net";
// @ts-types="@types/ssh2"
import ssh2 from "ssh2";
import type { Connection, ServerChannel, Session } from "ssh2";

/** How a {@linkcode TestGuest} misbehaves. */
export interface TestGuestOptions {
  /** Refuse every key. */
  readonly refuseKey?: boolean;
  /** Close the connection when a command comes, without an exit status. */
  readonly loseCommands?: boolean;
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
  /** A private key that it lets in. */
  readonly privateKey: string;
  readonly port: number;
  readonly #server: ssh2.Server;
  readonly #connections = new Set<Connection>();
  readonly #children = new Set<ChildProcess>();
  readonly #options: TestGuestOptions;

  private constructor(server: ssh2.Server, privateKey: string, options: TestGuestOptions) {
    this.#server = server;
    this.#options = options;
    this.privateKey = privateKey;
    this.port = (server.address() as AddressInfo).port;
    server.on("connection", (connection) => this.#serve(connection));
  }

  static async start(options: TestGuestOptions = {}): Promise<TestGuest> {
    const server = new ssh2.Server({ hostKeys: [generateKey()] });
    const { promise, resolve } = Promise.withResolvers<void>();
    server.listen(0, "0.0.0.0", resolve);
    await promise;
    return new TestGuest(server, generateKey(), options);
  }

  /** Ends all connections at once, as a guest does that loses its power. */
  cutPower(): void {
    for (const connection of this.#connections) connection.end();
    for (const child of this.#children) child.kill("SIGKILL");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cutPower();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    await promise;
  }

  #serve(connection: Connection): void {
    this.#connections.add(connection);
    connection.on("close", () => this.#connections.delete(connection));
    connection.on("error", () => {});
    connection.on("authentication", (context) => {
      const known = context.method === "publickey" && !this.#options.refuseKey;
      if (known) context.accept();
      else context.reject(["publickey"]);
    });
    connection.on("session", (accept) => this.#serveSession(accept(), connection));
  }

  #serveSession(session: Session, connection: Connection): void {
    session.on("exec", (accept, _reject, { command }) => {
      const channel = accept();
      this.commands.push(command);
      if (this.#options.loseCommands && command !== "exit 0") connection.end();
      else this.#exec(channel, command);
    });
  }

  #exec(channel: ServerChannel, command: string): void {
    const child = spawn("/bin/sh", ["-c", command], { detached: true });
    this.#children.add(child);
    const decoder = new TextDecoder();
    let input = "";
    channel.on("data", (bytes: Uint8Array) => input += decoder.decode(bytes, { stream: true }));
    channel.pipe(child.stdin);
    child.stdin.on("error", () => {});
    child.stdout.pipe(channel, { end: false });
    child.stderr.pipe(channel.stderr, { end: false });
    child.on("exit", (status, signal) => {
      this.#children.delete(child);
      this.inputs.push(input);
      if (status === null) channel.exit(signal ?? "KILL");
      else channel.exit(status);
    });
    child.on("close", () => channel.end());
  }
}

/** A private key. One in some hundreds of those that ssh2 makes is malformed. */
function generateKey(): string {
  for (;;) {
    const key = ssh2.utils.generateKeyPairSync("ed25519").private;
    if (!(ssh2.utils.parseKey(key) instanceof Error)) return key;
  }
}
