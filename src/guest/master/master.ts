// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../../errors.ts";
import { type MasterKnowledge, MOST_SCRIPT_BYTES } from "./client.ts";
import { type Frame, FrameReader, FrameWriter, KIND, PROTOCOL, readJson } from "./frames.ts";
import { endOf, type ScriptEnd } from "./script_end.ts";
import { openSsh } from "../ready.ts";
import { GuestSilent, lostGuest, runScript, type Script } from "../script.ts";
import type { Login, SshConnection } from "../ssh_connection.ts";
import { within } from "../../wait.ts";

/** What a connection master is for. */
export interface MasterTask extends Omit<MasterKnowledge, "hasFailed"> {
  /** The machine's name, as its job calls it. */
  readonly machine: string;
  readonly shell: Script["shell"];
  readonly login: Login;
  /** Where it listens. */
  readonly socket: string;
  /** When it ends at the latest, in milliseconds since 1970; null if unknown. */
  readonly deadline: number | null;
}

const LOGIN_SECONDS = 30;
const KEEPALIVE_MS = 5000;
/** After three of these without an answer, an idle guest is lost. Who runs a script may be busy. */
const IDLE_SILENCE_MS = 3.5 * KEEPALIVE_MS;
const LOOK_MS = 2000;
const MOST_SCRIPTS = 8;
/** How long scripts have to end, when the master does. */
const ENDING_MS = 10_000;

/**
 * Keeps a connection to a guest, and runs the scripts there that come through a socket which it makes.
 * Resolves when it has ended, and the socket is gone: at the signal, at its deadline, when it is
 * told to, when the guest is lost, or when the socket is not its own any more.
 */
export async function keepConnection(task: MasterTask, signal: AbortSignal): Promise<void> {
  const listener = Deno.listen({ transport: "unix", path: task.socket });
  await new Master(task, Deno.lstatSync(task.socket).ino, signal).serve(listener);
}

/**
 * Reads a connection master's task from the standard input, and does it. The task is empty if prepare
 * ends before it writes one.
 */
export async function runMaster(
  input: ReadableStream<Uint8Array>,
  signal: AbortSignal,
): Promise<void> {
  const text = await new Response(input).text();
  if (text !== "") await keepConnection(JSON.parse(text) as MasterTask, signal);
}

class Master {
  readonly #task: MasterTask;
  readonly #inode: number | null;
  readonly #over = new AbortController();
  /** Aborts when it ends, by itself or by its caller. */
  readonly #signal: AbortSignal;
  readonly #ssh: Promise<SshConnection>;
  readonly #conns = new Set<Deno.Conn>();
  readonly #scripts = new Set<Promise<unknown>>();
  #hasFailed = false;

  constructor(task: MasterTask, inode: number | null, signal: AbortSignal) {
    this.#task = task;
    this.#inode = inode;
    this.#signal = AbortSignal.any([signal, this.#over.signal]);
    const limits = { timeoutSeconds: LOGIN_SECONDS, signal: this.#signal, log: () => {} };
    this.#ssh = openSsh(task.login, limits, { keepaliveMs: KEEPALIVE_MS });
    this.#ssh.then((ssh) => ssh.closed)
      .then(() => Promise.allSettled(this.#scripts), () => {}) // they say first that they lost it
      .then(() => this.#end());
  }

  /** Has it end, once the scripts that run have ended, which are cancelled. */
  #end(): void {
    this.#over.abort(new Error("the connection master ends"));
  }

  /** Serves until it ends. */
  async serve(listener: Deno.Listener): Promise<void> {
    const close = (): void => listener.close();
    this.#signal.addEventListener("abort", close);
    if (this.#signal.aborted) close();
    const timer = setInterval(() => this.#look().catch(() => this.#end()), LOOK_MS);
    try {
      for await (const conn of listener) this.#serveConn(conn);
    } finally {
      clearInterval(timer);
      if (this.#hasSocket()) Deno.removeSync(this.#task.socket);
      await within(Promise.allSettled(this.#scripts), ENDING_MS);
      (await this.#ssh.catch(() => null))?.[Symbol.dispose]();
      for (const conn of this.#conns) this.#close(conn);
    }
  }

  /** Ends if it is no longer needed, or the guest is lost. */
  async #look(): Promise<void> {
    const { deadline } = this.#task;
    if (!this.#hasSocket() || deadline !== null && Date.now() > deadline) this.#end();
    const ssh = await this.#ssh;
    if (this.#scripts.size === 0 && ssh.silentMs > IDLE_SILENCE_MS) this.#end();
  }

  /** Whether the socket is there, and its own. */
  #hasSocket(): boolean {
    try {
      return Deno.lstatSync(this.#task.socket).ino === this.#inode;
    } catch {
      return false;
    }
  }

  async #serveConn(conn: Deno.Conn): Promise<void> {
    this.#conns.add(conn);
    const reader = new FrameReader(conn);
    try {
      const first = await reader.next();
      if (first?.kind === KIND.quit && this.#isOurs(readJson(first))) {
        return this.#end(); // which closes it last, to say that all is over
      }
      if (first?.kind === KIND.hello) await this.#serveScript(first, reader, new FrameWriter(conn));
    } catch {
      // The client is gone, or is not libvirt-gci.
    }
    this.#close(conn);
  }

  #close(conn: Deno.Conn): void {
    if (this.#conns.delete(conn)) conn.close();
  }

  #isOurs({ machine }: Readonly<Record<string, unknown>>): boolean {
    return machine === this.#task.machine || machine === this.#task.domain;
  }

  async #serveScript(hello: Frame, reader: FrameReader, writer: FrameWriter): Promise<void> {
    const asked = readJson(hello);
    const size = Number(asked["bytes"]);
    const isFit = asked["protocol"] === PROTOCOL && asked["machine"] === this.#task.machine &&
      Number.isInteger(size) && size >= 0 && size <= MOST_SCRIPT_BYTES;
    const ssh = isFit && this.#scripts.size < MOST_SCRIPTS ? await this.#ssh : null;
    if (ssh === null || ssh.isClosed || this.#signal.aborted) {
      return await writer.send(KIND.refused);
    }
    const { domain, keeps, metricsFile } = this.#task;
    const known: MasterKnowledge = { domain, keeps, metricsFile, hasFailed: this.#hasFailed };
    await writer.sendJson(KIND.ready, known);
    const text = await readScript(reader, size);
    const running = this.#runScript(ssh, text, { reader, writer });
    this.#scripts.add(running);
    const end = await running.finally(() => this.#scripts.delete(running));
    try {
      await writer.sendJson(KIND.end, end); // which fails if nobody is there any more
    } finally {
      if ("cancelled" in end && !end.answered) this.#end(); // the next may not wait for this guest
    }
  }

  /** Runs it until it ends, or the client cancels it or is gone. */
  async #runScript(
    ssh: SshConnection,
    text: Uint8Array,
    { reader, writer }: { readonly reader: FrameReader; readonly writer: FrameWriter },
  ): Promise<ScriptEnd> {
    const cancelled = new AbortController();
    reader.next().catch(() => null).then(() =>
      cancelled.abort(new Error("the script is cancelled"))
    );
    const signal = AbortSignal.any([cancelled.signal, this.#signal]);
    const stdout = (bytes: Uint8Array) => writer.send(KIND.stdout, bytes);
    const stderr = (bytes: Uint8Array) => writer.send(KIND.stderr, bytes);
    try {
      const script = { text, shell: this.#task.shell, stdout, stderr };
      const status = await runScript(ssh, script, signal);
      if (status !== 0) this.#hasFailed = true;
      return { status };
    } catch (error) {
      this.#hasFailed = true;
      if (error instanceof GuestSilent) return { cancelled: true, answered: false };
      if (signal.aborted) return { cancelled: true, answered: true };
      const isLost = ssh.isClosed && !(error instanceof SystemFailure);
      return endOf(isLost ? lostGuest(error instanceof Error ? error : null) : error);
    }
  }
}

async function readScript(reader: FrameReader, size: number): Promise<Uint8Array> {
  const text = new Uint8Array(size);
  let at = 0;
  do {
    const frame = await reader.next();
    if (frame?.kind !== KIND.script || frame.bytes.length > size - at) {
      throw new Error("the script did not come whole");
    }
    text.set(frame.bytes, at);
    at += frame.bytes.length;
  } while (at < size);
  return text;
}
