// SPDX-License-Identifier: GPL-2.0-or-later
import { type Frame, FrameReader, FrameWriter, KIND, readJson } from "./frames.ts";
import { KEEPALIVE_MS, keepConnection, type MasterTask } from "./master.ts";
import { endOf } from "./script_end.ts";
import { runNothing, tryCommand, tryLogin } from "../ready.ts";
import { loadSsh, type Login, type SshConnection } from "../ssh_connection.ts";
import { NotYet, rejectAtAbort } from "../../wait.ts";

/** An attempt to log in, which prepare asks for. */
export interface LoginRequest {
  readonly login: Omit<Login, "keyKnown" | "channel">;
  readonly connectMs: number;
  /** Whether a command must run too. */
  readonly runsCommand: boolean;
  /** Whether the guest knows the key. If not, a frame says when it does. */
  readonly isKeyKnown: boolean;
}

/** How long a guest may take that has just run a command, to run another. */
const AGAIN_MS = 2000;

/** Where prepare talks, and listens. */
export interface MasterInput {
  readonly input: Pick<Deno.Conn, "read">;
  readonly output: Pick<Deno.Conn, "write">;
}

/**
 * A connection master. It logs in as prepare says, and keeps the connection when it has its task. If prepare
 * ends before that, so does the master.
 */
export async function runMaster(
  { input, output }: MasterInput,
  signal: AbortSignal,
): Promise<void> {
  const [reader, writer] = [new FrameReader(input), new FrameWriter(output)];
  await loadSsh(); // while the guest boots
  await writer.send(KIND.ready);
  using first = new FirstLogin(signal);
  const ended = rejectAtAbort(signal);
  const next = () => Promise.race([reader.next(), ended]);
  for (let frame = await next(); frame !== null; frame = await next()) {
    if (frame.kind === KIND.keyKnown) first.tellKeyKnown();
    if (frame.kind === KIND.login) {
      first.attempt(requestOf(frame)).then((end) => writer.sendJson(KIND.end, end)).catch(() => {});
    }
    if (frame.kind === KIND.task) {
      const ssh = first.take();
      if (ssh === null) return;
      const keeping = keepConnection(readJson(frame) as unknown as MasterTask, ssh, signal);
      await Promise.all([keeping, writer.send(KIND.ready).catch(() => {})]);
      return;
    }
  }
}

function requestOf(frame: Frame): LoginRequest {
  return readJson(frame) as unknown as LoginRequest;
}

/** The connection of a master that has no task yet. */
class FirstLogin implements Disposable {
  readonly #over = new AbortController();
  readonly #signal: AbortSignal;
  /** Tells the attempt that the guest knows the key. */
  tellKeyKnown = (): void => {};
  #held: { readonly ssh: SshConnection; readonly login: LoginRequest["login"] } | null = null;

  constructor(signal: AbortSignal) {
    this.#signal = AbortSignal.any([signal, this.#over.signal]);
  }

  /** Tries to log in, and holds the connection. Gives how that ended, as prepare is told. */
  async attempt(request: LoginRequest): Promise<object> {
    const { promise: keyKnown, resolve } = Promise.withResolvers<void>();
    this.tellKeyKnown = resolve;
    if (request.isKeyKnown) resolve();
    try {
      if (await this.#answersStill(request)) return { hostKey: this.#held?.ssh.hostKey };
      this.#drop();
      const ssh = await this.#open(request, keyKnown);
      if (ssh instanceof NotYet) return { notYet: ssh };
      if (this.#signal.aborted) ssh[Symbol.dispose]();
      else this.#held = { ssh, login: request.login };
      return { hostKey: ssh.hostKey };
    } catch (error) {
      return endOf(error);
    }
  }

  #open(
    { login, connectMs, runsCommand }: LoginRequest,
    keyKnown: Promise<void>,
  ): Promise<SshConnection | NotYet> {
    const options = { connectMs, signal: this.#signal, keepaliveMs: KEEPALIVE_MS };
    const whole = { ...login, channel: null, keyKnown };
    return runsCommand ? tryCommand(whole, options) : tryLogin(whole, options);
  }

  /** Whether the connection that it holds is to that guest, and a command runs over it. */
  async #answersStill({ login }: LoginRequest): Promise<boolean> {
    if (this.#held === null) return false;
    const { ssh, login: { hostKey: _, ...held } } = this.#held;
    const { hostKey, ...wanted } = login;
    return ssh.hostKey === hostKey && JSON.stringify(held) === JSON.stringify(wanted) &&
      await runNothing(ssh, { milliseconds: AGAIN_MS, signal: this.#signal }) === 0;
  }

  /** The connection, which then is the caller's. */
  take(): SshConnection | null {
    const ssh = this.#held?.ssh ?? null;
    this.#held = null;
    return ssh;
  }

  #drop(): void {
    this.take()?.[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.#over.abort();
    this.#drop();
  }
}
