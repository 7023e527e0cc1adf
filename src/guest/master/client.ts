// SPDX-License-Identifier: GPL-2.0-or-later
import type { Outputs } from "../command_streams.ts";
import { isControlSocket } from "./control_socket.ts";
import {
  type Frame,
  FrameReader,
  FrameWriter,
  KIND,
  type Kind,
  PROTOCOL,
  readJson,
} from "./frames.ts";
import { errorOf, parseEnd, type ScriptEnd } from "./script_end.ts";
import { GuestSilent, lostGuest, MOST_CANCEL_MS } from "../script.ts";
import { within } from "../../wait.ts";

/** How long the master may take until it has logged in, and to end. */
const READY_MS = 5000;
const QUIT_MS = 1000;
/** The largest script, so that no client makes the master use up all memory. */
export const MOST_SCRIPT_BYTES = 64 * 1024 * 1024;

/** What `run` has to know of a machine, and the master knows. */
export interface MasterKnowledge {
  /** The name of the machine's domain. */
  readonly domain: string;
  /** Whether the machine is to be kept if a script fails. */
  readonly keeps: boolean;
  /** Whether a script that went through it failed: then the machine's metadata may say so. */
  readonly hasFailed: boolean;
  /** As in the settings. */
  readonly metricsFile: string | null;
}

/**
 * A connection to the master of this machine, ready for a script of so many bytes; null if there is none
 * at this path, or it is another's, or not logged in in time. The caller disposes of it.
 */
export async function findMaster(
  path: string | null,
  { machine, bytes }: { readonly machine: string; readonly bytes: number },
): Promise<MasterSession | null> {
  if (path === null || bytes > MOST_SCRIPT_BYTES || !await isControlSocket(path)) return null;
  let conn: Deno.Conn | null = null;
  const ask = async (): Promise<MasterSession | null> => {
    conn = await Deno.connect({ transport: "unix", path });
    const [reader, writer] = [new FrameReader(conn), new FrameWriter(conn)];
    await writer.sendJson(KIND.hello, { protocol: PROTOCOL, machine, bytes });
    const answer = await reader.next();
    if (answer?.kind !== KIND.ready) return null;
    const { domain, keeps, hasFailed, metricsFile } = readJson(answer);
    if (typeof domain !== "string") return null;
    const known: MasterKnowledge = {
      domain,
      keeps: keeps !== false,
      hasFailed: hasFailed !== false,
      metricsFile: typeof metricsFile === "string" ? metricsFile : null,
    };
    return new MasterSession(conn, { reader, writer, known });
  };
  const session = await within(ask(), READY_MS).catch(() => null);
  if (session === null) close(conn);
  return session;
}

/** Has the master of this machine end, if there is one at this path. It never fails. */
export async function endMaster(path: string | null, machine: string): Promise<void> {
  if (path === null || !await isControlSocket(path, { anyUser: true })) return;
  let conn: Deno.Conn | null = null;
  const quit = async (): Promise<void> => {
    conn = await Deno.connect({ transport: "unix", path });
    await new FrameWriter(conn).sendJson(KIND.quit, { machine });
    await new FrameReader(conn).next(); // null: it has ended
  };
  await within(quit(), QUIT_MS).catch(() => {});
  close(conn);
}

function close(conn: Deno.Conn | null): void {
  try {
    conn?.close();
  } catch {
    // It is closed.
  }
}

/** A master's connection to the guest, lent for one script. */
export class MasterSession implements Disposable {
  readonly known: MasterKnowledge;
  readonly #conn: Deno.Conn;
  readonly #reader: FrameReader;
  readonly #writer: FrameWriter;

  constructor(
    conn: Deno.Conn,
    { reader, writer, known }: {
      readonly reader: FrameReader;
      readonly writer: FrameWriter;
      readonly known: MasterKnowledge;
    },
  ) {
    this.#conn = conn;
    this.#reader = reader;
    this.#writer = writer;
    this.known = known;
  }

  /** As runScript(), in the guest that the master is connected to. A lost master is a lost guest. */
  async run(text: Uint8Array, outputs: Outputs, signal: AbortSignal): Promise<number> {
    signal.throwIfAborted();
    const stopped = new AbortController();
    const stop = (): void => {
      if (stopped.signal.aborted) return;
      stopped.abort();
      this.#writer.send(KIND.cancel).catch(() => {});
    };
    signal.addEventListener("abort", stop);
    try {
      const sent = this.#writer.send(KIND.script, text);
      sent.catch(() => {}); // the reader notices that the master is gone
      const end = await this.#passOutput(outputs, stop, stopped.signal);
      if (signal.aborted) throw hasAnswered(end) ? signal.reason : new GuestSilent(signal.reason);
      if (end === null || "cancelled" in end) throw lostGuest(new Error("its master has ended"));
      if ("failure" in end) throw errorOf(end.failure);
      return end.status;
    } finally {
      signal.removeEventListener("abort", stop);
    }
  }

  /**
   * Passes the output on until the script has ended, or been stopped, which a sink that fails does too.
   * Null if the master is lost, or does not say in time what became of the script. Throws what a sink
   * threw.
   */
  async #passOutput(
    outputs: Outputs,
    stop: () => void,
    stopped: AbortSignal,
  ): Promise<ScriptEnd | null> {
    const { promise: isStopped, resolve } = Promise.withResolvers<void>();
    stopped.addEventListener("abort", () => resolve());
    const failures: unknown[] = [];
    const pass = async (): Promise<ScriptEnd | null> => {
      for (;;) {
        const frame = await this.#reader.next().catch(() => null);
        if (frame === null) return null;
        if (frame.kind === KIND.end) return parseEnd(readJson(frame));
        const sink = sinkFor(frame, outputs);
        if (sink === null || stopped.aborted) continue;
        // The bytes are the reader's, and a sink that is not waited for may still have them.
        const written = sink(frame.bytes.slice()).catch((error) => {
          failures.push(error);
          stop();
        });
        await Promise.race([written, isStopped]);
      }
    };
    const passed = pass();
    const late = isStopped.then(() => within(passed, MOST_CANCEL_MS));
    const end = await Promise.race([passed, late]);
    if (failures.length > 0) throw failures[0];
    return end;
  }

  /** Closes it, which cancels a script that runs. */
  [Symbol.dispose](): void {
    close(this.#conn);
  }
}

function hasAnswered(end: ScriptEnd | null): boolean {
  return end !== null && !("cancelled" in end && !end.answered);
}

function sinkFor({ kind }: Frame, { stdout, stderr }: Outputs): Outputs["stdout"] | null {
  const known = kind as Kind;
  return known === KIND.stdout ? stdout : known === KIND.stderr ? stderr : null;
}
