// SPDX-License-Identifier: GPL-2.0-or-later
import type { Duplex } from "node:stream";
// @ts-types="@types/ssh2"
import type {
  AuthHandlerMiddleware,
  Client,
  ClientCallback,
  ClientChannel,
  ConnectConfig,
} from "ssh2";
import { SystemFailure } from "../errors.ts";
import { ALGORITHMS } from "./algorithms.ts";
import { limitBuffering } from "./backpressure.ts";
import type { Channel } from "./channel.ts";
import {
  type CommandEnd,
  type CommandStreams,
  drain,
  endOf,
  type Sink,
} from "./command_streams.ts";
import { HostKeyCheck } from "./host_key_check.ts";

/** How to log in to a guest. */
export interface Login {
  readonly address: string;
  readonly port: number;
  readonly user: string;
  /** The private key itself: never print it. */
  readonly privateKey: string;
  /** The channel to use instead of the address; null for a machine with a network. */
  readonly channel: Channel | null;
  /** The SHA-256 of the guest's host key in base64; null accepts any, at the first contact. */
  readonly hostKey: string | null;
  /** Resolves when the guest knows the key. The rest of the login does not wait for it. */
  readonly keyKnown?: Promise<unknown>;
}

const KEEPALIVE_MS = 15_000;
/** Time to see bytes that have come already, when a timeout ends. */
const GRACE_MS = 10;
const SILENT_MS = 120_000; // a busy guest is slow to answer, not gone

/** Offers the key at once and nothing else, which saves the round trip to ask for the methods. */
function byKeyOnceKnown(keyKnown: Promise<unknown>): AuthHandlerMiddleware {
  const nothingMore = false as never; // which ssh2 takes, and its types do not know
  let isOffered = false;
  keyKnown.catch(() => {}); // the caller handles that
  return (_left, _isPartial, next) => {
    if (isOffered) return next(nothingMore);
    isOffered = true;
    keyKnown.then(() => next("publickey"), () => next(nothingMore));
  };
}

/** How to open a connection. */
export interface OpenOptions {
  readonly timeoutMs: number;
  /** The part of it that the connection may take, before SSH begins. */
  readonly connectMs?: number;
  readonly signal: AbortSignal;
  /** The opened channel, closed with the connection. */
  readonly sock?: Duplex;
  /** How often an idle connection asks for a sign of life. */
  readonly keepaliveMs?: number;
}

/** The channel, or a new socket to the guest, which ssh2 can pause. */
async function socketTo({ address, port }: Login, channel: Duplex | undefined): Promise<Duplex> {
  const { createConnection } = await import("node:net");
  const { Duplex: { prototype: { pause, resume } } } = await import("node:stream");
  // As in Node: Deno 2.7's own leave a read behind, and the next writes over what it has read.
  return Object.assign(channel ?? createConnection({ host: address, port }), { pause, resume });
}

/** ssh2's options for a login, without the socket and the host key. */
function configOf(
  { user, privateKey, keyKnown }: Login,
  { timeoutMs, keepaliveMs = KEEPALIVE_MS }: OpenOptions,
): ConnectConfig {
  return {
    username: user,
    privateKey,
    authHandler: byKeyOnceKnown(keyKnown ?? Promise.resolve()),
    readyTimeout: timeoutMs,
    keepaliveInterval: keepaliveMs,
    keepaliveCountMax: Math.round(SILENT_MS / keepaliveMs),
    algorithms: ALGORITHMS,
    hostHash: "sha256",
  };
}

/** Loads what the first connection needs, before there is one. */
export async function loadSsh(): Promise<void> {
  await Promise.all([import("ssh2"), import("node:net"), import("node:stream")]);
}

/** A connection to a guest's SSH server. */
export class SshConnection implements Disposable {
  /** The SHA-256 of the host key that the server proved to have, in base64. */
  readonly hostKey: string;
  /** Resolves when the connection is closed, by whichever side. */
  readonly closed: Promise<void>;
  readonly #client: Client;
  #lost: Error | null = null;
  #isClosed = false;
  #heard = performance.now();

  private constructor(client: Client, sock: Duplex, hostKey: string) {
    this.#client = client;
    this.hostKey = hostKey;
    client.on("error", (error) => this.#lost = error); // or it would end the process
    sock.on("data", () => this.#heard = performance.now());
    const { promise, resolve } = Promise.withResolvers<void>();
    client.once("close", () => {
      this.#isClosed = true;
      resolve();
    });
    this.closed = promise;
  }

  /**
   * Logs in. Throws SystemFailure if the guest refuses the key or shows another host key
   * than the one known, and other errors if it cannot be reached (yet).
   */
  static async open(
    login: Login,
    options: OpenOptions,
  ): Promise<SshConnection> {
    const { timeoutMs, connectMs = timeoutMs, signal, sock: channel } = options;
    // @ts-types="@types/ssh2"
    const { Client } = (await import("ssh2")).default;
    const sock = await socketTo(login, channel);
    const client = new Client();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const abort = (): void => reject(signal.reason);
    const hostKey = new HostKeyCheck(login.hostKey);
    const giveUp = (): void => {
      const words = `Timed out while connecting to ${login.address} port ${login.port}`;
      reject(Object.assign(new Error(words), { code: "ETIMEDOUT" }));
    };
    // On a busy host, the time may be over before the program sees that the guest has answered.
    let connecting = setTimeout(() => connecting = setTimeout(giveUp, GRACE_MS), connectMs);
    let isConnecting = channel === undefined;
    client.on("connect", () => {
      isConnecting = false;
      clearTimeout(connecting);
      client.setNoDelay(true); // Nagle's algorithm costs 40 ms a step
    });
    client.on("ready", () => resolve());
    client.on("error", (error) => {
      reject(hostKey.isWrong ? wrongHostKeyError(login) : refusalOr(error, login));
    });
    client.on("close", () => reject(new Error("the guest closed the connection")));
    signal.addEventListener("abort", abort);
    try {
      signal.throwIfAborted();
      client.connect({ ...configOf(login, options), sock, hostVerifier: hostKey.verify });
      limitBuffering(client, sock);
      await promise;
      return new SshConnection(client, sock, hostKey.shown);
    } catch (error) {
      // Deno 2.7 leaves a socket open that is destroyed while it connects: it is destroyed then.
      if (isConnecting) sock.on("connect", () => sock.destroy());
      else client.destroy();
      channel?.destroy();
      sock.on("error", () => {}); // ssh2 does not listen if it took no key
      throw error;
    } finally {
      clearTimeout(connecting);
      signal.removeEventListener("abort", abort);
    }
  }

  /** The error that ended the connection, if it was lost. */
  get lost(): Error | null {
    return this.#lost;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** How long nothing has come from the server. */
  get silentMs(): number {
    return performance.now() - this.#heard;
  }

  /**
   * Runs a command through the user's login shell, feeds it `input`, and gives its output to the
   * filters. Comes back when the command has ended and each filter has had all, or all it wants. Then it
   * closes the session: processes left behind would keep it open, and a server allows only so many.
   */
  async run(command: string, { input, stdout, stderr }: CommandStreams): Promise<CommandEnd> {
    const { channel, end } = await this.#exec(command);
    try {
      channel.end(input);
      await Promise.all([drain(channel, stdout), drain(channel.stderr, stderr)]);
      return await end;
    } finally {
      channel.close();
    }
  }

  /**
   * Opens the user's login shell, or runs a command, with a terminal in the guest whose output goes to
   * the sink.
   */
  async openTerminal(
    command: string | null,
    { type, size, output }: {
      /** As in TERM. */
      readonly type: string;
      readonly size: TerminalSize;
      readonly output: Sink;
    },
  ): Promise<RemoteTerminal> {
    const pty = { term: type, cols: size.columns, rows: size.rows };
    const { channel, end } = await this.#start((done) =>
      command === null ? this.#client.shell(pty, done) : this.#client.exec(command, { pty }, done)
    );
    const drained = drain(channel, output);
    return {
      write: (bytes) => void channel.write(bytes),
      resize: ({ columns, rows }) => channel.setWindow(rows, columns, 0, 0),
      end: drained.then(() => end),
    };
  }

  #exec(command: string): Promise<RunningCommand> {
    return this.#start((done) => this.#client.exec(command, done));
  }

  async #start(open: (done: ClientCallback) => void): Promise<RunningCommand> {
    const { promise, resolve, reject } = Promise.withResolvers<RunningCommand>();
    const closed = (): void => reject(this.#lost ?? new Error("the connection is closed"));
    this.#client.once("close", closed);
    try {
      open((error, channel) => { // which throws where the connection is closed already
        if (error) reject(error);
        // Now or never: a fast command's end is in the same packet as the answer to ours.
        else resolve({ channel, end: endOf(channel, this.#client) });
      });
      return await promise;
    } finally {
      this.#client.off("close", closed);
    }
  }

  /** Closes the connection; the guest's processes that it started may run on. */
  [Symbol.dispose](): void {
    this.#client.destroy();
  }
}

/** How large a terminal is, in characters. */
export interface TerminalSize {
  readonly columns: number;
  readonly rows: number;
}

/** A terminal in the guest. */
export interface RemoteTerminal {
  /** Types. */
  readonly write: (bytes: Uint8Array) => void;
  readonly resize: (size: TerminalSize) => void;
  /** Resolves when what runs in it has ended and its output has been taken. */
  readonly end: Promise<CommandEnd>;
}

interface RunningCommand {
  readonly channel: ClientChannel;
  readonly end: Promise<CommandEnd>;
}

function refusalOr(error: Error & { level?: string }, login: Login): Error {
  if (error.level !== "client-authentication") return error;
  return new SystemFailure({
    fault: "ssh_refused",
    what: `The guest at ${login.address} refuses the key for the user "${login.user}"`,
    advice: 'Check that the template gets the key as "ssh.login" says; ' +
      `with "ssh.login: template", add the key's public part to the template's ~${login.user}/.ssh/authorized_keys`,
  });
}

function wrongHostKeyError(login: Login): Error {
  return new SystemFailure({
    fault: "host_key",
    what: `The SSH server at ${login.address} does not show the machine's host key`,
    advice:
      "Remove any command that replaces the host key from the job's scripts; otherwise check " +
      "which machine has the address: libvirt-gci list",
  });
}
