// SPDX-License-Identifier: GPL-2.0-or-later
import type { LoginRequest } from "./first_login.ts";
import { FrameReader, FrameWriter, KIND, readJson } from "./frames.ts";
import type { MasterTask } from "./master.ts";
import { errorOf, parseEnd } from "./script_end.ts";
import { type Attempt, type AttemptOptions, tryCommand, tryLogin } from "../ready.ts";
import type { Login } from "../ssh_connection.ts";
import { NotYet, within } from "../../wait.ts";

/** A process that reads what prepare says, and answers. */
export interface MasterPipes {
  readonly stdin: WritableStream<Uint8Array<ArrayBuffer>>;
  readonly stdout: ReadableStream<Uint8Array>;
}

/** Starts a process that calls runMaster(). */
export type StartMaster = () => MasterPipes;

/** How long the process may take to start once it is needed, and to take its task. */
const START_MS = 5000;
/** More than an attempt takes. */
const ANSWER_MS = 35_000;

/**
 * The connection master of a machine that prepare creates: a process that is started while the machine
 * boots, then logs in, and keeps that connection for the job's scripts. A job can do without: if anything
 * of the master disagrees, prepare logs in by itself. The process ends when this is disposed of, unless it
 * has its task.
 */
export class NewMaster implements Disposable {
  readonly #startProcess: StartMaster;
  #talk: Talk | null = null;

  constructor(startProcess: StartMaster) {
    this.#startProcess = startProcess;
  }

  /** Starts the process, unless there is one. */
  start(): void {
    try {
      this.#talk ??= new Talk(this.#startProcess());
    } catch {
      // prepare logs in by itself, and so does each script.
    }
  }

  /** Has the master log in and run a command that does nothing. Gives the guest's host key. */
  readonly tryCommand: Attempt<string> = (login, options) => this.#attempt(login, options, true);

  /** Has the master log in. Gives the guest's host key. */
  readonly tryLogin: Attempt<string> = (login, options) => this.#attempt(login, options, false);

  async #attempt(
    login: Login,
    options: AttemptOptions,
    runsCommand: boolean,
  ): Promise<string | NotYet> {
    const { signal, connectMs } = options;
    const asked = this.#talk?.logIn(login, { connectMs, runsCommand });
    const answer = await within(asked ?? Promise.resolve(null), ANSWER_MS, signal).catch(() =>
      null
    );
    if (answer !== null) return read(answer);
    this[Symbol.dispose]();
    signal.throwIfAborted();
    const ssh = await (runsCommand ? tryCommand : tryLogin)(login, options);
    if (ssh instanceof NotYet) return ssh;
    ssh[Symbol.dispose]();
    return ssh.hostKey;
  }

  /** Gives the master its task, now that the machine is ready. Resolves when it serves, or never will. */
  async give(task: MasterTask): Promise<void> {
    const given = this.#talk?.give(task);
    await within(given ?? Promise.resolve(), START_MS).catch(() => {}); // each script logs in by itself
  }

  [Symbol.dispose](): void {
    this.#talk?.end();
    this.#talk = null;
  }
}

type Answer = ReturnType<typeof readJson>;

/** What became of an attempt. Throws what it failed with. */
function read(answer: Answer): string | NotYet {
  const { hostKey, notYet } = answer;
  if (typeof hostKey === "string") return hostKey;
  if (notYet !== undefined) {
    const { reason, failure } = notYet as NotYet;
    return new NotYet(reason, failure);
  }
  const end = parseEnd(answer);
  throw end !== null && "failure" in end ? errorOf(end.failure) : new Error("it is not told");
}

/** What prepare and the process say to each other. Whatever fails there, it is of no use any more. */
class Talk {
  readonly #from: ReadableStreamBYOBReader;
  readonly #to: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  readonly #reader: FrameReader;
  readonly #writer: FrameWriter;
  readonly #up: Promise<boolean>;

  constructor({ stdin, stdout }: MasterPipes) {
    const from = this.#from = stdout.getReader({ mode: "byob" });
    const to = this.#to = stdin.getWriter();
    this.#reader = new FrameReader({
      read: async (into) => {
        const { value } = await from.read(new Uint8Array(into.length));
        if (value === undefined || value.length === 0) return null;
        into.set(value);
        return value.length;
      },
    });
    this.#writer = new FrameWriter({
      write: async (bytes) => {
        await to.write(bytes as Uint8Array<ArrayBuffer>);
        return bytes.length;
      },
    });
    this.#up = this.#isReady();
    this.#up.catch(() => {}); // nobody may ever ask
  }

  async #isReady(): Promise<boolean> {
    return (await this.#reader.next())?.kind === KIND.ready;
  }

  /** Has it try to log in. Null if it does not answer. */
  async logIn(
    { channel: _, keyKnown, ...login }: Login,
    how: Pick<LoginRequest, "connectMs" | "runsCommand">,
  ): Promise<Answer | null> {
    if (!await within(this.#up, START_MS)) return null;
    const request: LoginRequest = { ...how, login, isKeyKnown: keyKnown === undefined };
    await this.#writer.sendJson(KIND.login, request);
    keyKnown?.then(() => this.#writer.send(KIND.keyKnown)).catch(() => {});
    const frame = await this.#reader.next();
    return frame?.kind === KIND.end ? readJson(frame) : null;
  }

  async give(task: MasterTask): Promise<void> {
    await this.#writer.sendJson(KIND.task, task);
    await this.#isReady();
  }

  /** Ends what is said. */
  end(): void {
    this.#from.cancel().catch(() => {});
    this.#to.close().catch(() => {});
  }
}
