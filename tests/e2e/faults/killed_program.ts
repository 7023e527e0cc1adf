// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * The real program, which sends a signal to a process at one of its calls of libvirt: LIBVIRT_GCI_FAULT
 * says which, as JSON of a {@linkcode Strike}.
 */
import { type CallName, Connection } from "../../../src/libvirt/connection.ts";
import { sleep } from "../../../src/wait.ts";

/** A signal at a call of libvirt. */
export interface Strike extends Point {
  readonly signal: "SIGKILL" | "SIGTERM";
  /** The file with the number of the process that gets it; null is the program's own. */
  readonly pidFile: string | null;
}

/** A moment of a stage. */
export interface Point {
  /** The call. */
  readonly name: string;
  /** How often the function was called, with this call. */
  readonly count: number;
  /** When it has been sent, a little later while the daemon is at it, or when it has come back. */
  readonly when: "sent" | "midway" | "done";
}

const MIDWAY_MS = 150;
const DELIVERY_MS = 20;

const { signal, pidFile, name, count, when }: Strike = JSON.parse(
  Deno.env.get("LIBVIRT_GCI_FAULT") ?? "",
);
// deno-lint-ignore no-explicit-any
const call: (...args: any[]) => Promise<any> = Connection.prototype.call;
let seen = 0;
Connection.prototype.call = async function (
  this: Connection,
  called: CallName,
  ...args: readonly unknown[]
) {
  const answer = call.apply(this, [called, ...args]);
  if (called !== name || ++seen !== count) return await answer;
  const ended = answer.catch(() => {}); // its error is thrown below
  if (when !== "sent") await Promise.race([ended, when === "midway" ? sleep(MIDWAY_MS) : ended]);
  Deno.kill(pidFile === null ? Deno.pid : Number(Deno.readTextFileSync(pidFile)), signal);
  await sleep(DELIVERY_MS);
  return await answer;
} as Connection["call"];

await import("../../../main.ts");
