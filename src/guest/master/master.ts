// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../../errors.ts";
import { type MasterKnowledge, MOST_SCRIPT_BYTES } from "./client.ts";
import { type Frame, FrameReader, FrameWriter, KIND, PROTOCOL, readJson } from "./frames.ts";
import { endOf, type ScriptEnd } from "./script_end.ts";
import { GuestSilent, lostGuest, runScript, type Script } from "../script.ts";
import type { SshConnection } from "../ssh_connection.ts";
import { within } from "../../wait.ts";

/** What a connection master is for. */
export interface MasterTask extends Omit<MasterKnowledge, "hasFailed"> {
  /** The machine's name, as its job calls it. */
  readonly machine: string;
  readonly shell: Script["shell"];
  /** Where it listens. */
  readonly socket: string;
  /** When it ends at the latest, in milliseconds since 1970; null if unknown. */
  readonly deadline: number | null;
}

/** How often its idle connection asks for a sign of life. */
export const KEEPALIVE_MS = 5000;
/** After three of these without an answer, an idle guest is lost. Who runs a script may be busy. */
const IDLE_SILENCE_MS = 3.5 * KEEPALIVE_MS;
const LOOK_MS = 2000;
const MOST_SCRIPTS = 8;
/** How long scripts have to end, when the master does. */
const ENDING_MS = 10_000;

/**
 * Runs the scripts that come through a socket which it makes at once, over this connection to a guest, and
 * disposes of it. Resolves when it has ended, and the socket is gone: at the signal, at its deadline, when
 * it is told to, when the guest is lost, or when the socket is not its own any more.
 */
export async function keepConnection(
  task: MasterTask,
  ssh: SshConnection,
  signal: AbortSignal,
): Promise<void> {
  using _ = ssh;
  const listener = Deno.listen({ transport: "unix", path: task.socket });
  await new Master({ task, ssh, inode: Deno.lstatSync(task.socket).ino }, signal).serve(listener);
}

class Master {
  readonly #task: MasterTask;
  readonly #inode: number | null;
  readonly #over = new AbortController();
  /** Aborts when it ends, by itself or by its caller. */
  readonly #signal: AbortSignal;
  readonly #ssh: SshConnection;
  readonly #conns = new Set<Deno.Conn>();
  readonly #scripts = new Set<Promise<unknown>>();
  #hasFailed = false;

  constructor(
    { task, ssh, inode }: {
      readonly task: MasterTask;
      readonly ssh: SshConnection;
      readonly inode: number | null;
    },
    signal: AbortSignal,
  ) {
    this.#task = task;
    this.#ssh = ssh;
    this.#inode = inode;
    this.#signal = AbortSignal.any([signal, this.#over.signal]);
    ssh.closed
      .then(() => Promise.allSettled(this.#scripts)) // they say first that they lost it
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
    const timer = setInterval(() => this.#look(), LOOK_MS);
    try {
      for await (const conn of listener) this.#serveConn(conn);
    } finally {
      clearInterval(timer);
      if (this.#hasSocket()) Deno.removeSync(this.#task.socket);
      await within(Promise.allSettled(this.#scripts), ENDING_MS);
      for (const conn of this.#conns) this.#close(conn);
    }
  }

  /** Ends if it is no longer needed, or the guest is lost. */
  #look(): void {
    const { deadline } = this.#task;
    const isOver = deadline !== null && Date.now() > deadline;
    const isLost = this.#scripts.size === 0 && this.#ssh.silentMs > IDLE_SILENCE_MS;
    if (isOver || isLost || !this.#hasSocket()) this.#end();
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
    if (
      !isFit || this.#scripts.size >= MOST_SCRIPTS || this.#ssh.isClosed || this.#signal.aborted
    ) {
      return await writer.send(KIND.refused);
    }
    const { domain, keeps, metricsFile } = this.#task;
    const known: MasterKnowledge = { domain, keeps, metricsFile, hasFailed: this.#hasFailed };
    await writer.sendJson(KIND.ready, known);
    const text = await readScript(reader, size);
    const running = this.#runScript(text, { reader, writer });
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
      const status = await runScript(this.#ssh, script, signal);
      if (status !== 0) this.#hasFailed = true;
      return { status };
    } catch (error) {
      this.#hasFailed = true;
      if (error instanceof GuestSilent) return { cancelled: true, answered: false };
      if (signal.aborted) return { cancelled: true, answered: true };
      const isLost = this.#ssh.isClosed && !(error instanceof SystemFailure);
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
