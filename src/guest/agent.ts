// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { isLibvirtError, isLost, VIR_ERR } from "../libvirt/error.ts";
import { sleep } from "../wait.ts";

/**
 * Gives the guest agent a command and resolves to the `return` of its answer:
 * https://qemu.readthedocs.io/en/latest/interop/qemu-ga-ref.html
 */
export type Agent = (command: object, timeoutSeconds: number) => Promise<unknown>;

const AGENT_SECONDS = 5;
/** Each poll is work for the guest, and its agent may log it. */
const FIRST_POLL_MS = 30;
const LONGEST_POLL_MS = 200;

/** A script's purpose, as the end of "The guest could not ...", and the time that it may take. */
export interface Purpose {
  readonly what: string;
  readonly timeoutSeconds: number;
}

/** Waits for the script's end or the signal. Throws SystemFailure with its stderr, or the reason. */
export type UntilEnd = (signal?: AbortSignal) => Promise<void>;

/** Runs a script for sh as root, through the guest's agent. Resolves when it has succeeded. */
export async function runByAgent(
  agent: Agent,
  script: string,
  purpose: Purpose,
  signal?: AbortSignal,
): Promise<void> {
  await (await startByAgent(agent, script, purpose))(signal);
}

/** The same, but resolves once the script has started. The agent does not log what is in it. */
export async function startByAgent(
  agent: Agent,
  script: string,
  purpose: Purpose,
): Promise<UntilEnd> {
  const end = performance.now() + purpose.timeoutSeconds * 1000;
  const { pid } = await ask(agent, "guest-exec", {
    path: "/bin/sh",
    arg: ["-s"],
    "input-data": new TextEncoder().encode(script).toBase64(),
    "capture-output": true,
  }, purpose.timeoutSeconds);
  return (signal) => waitForEnd(agent, pid, end, purpose, signal);
}

async function waitForEnd(
  agent: Agent,
  pid: unknown,
  end: number,
  { what, timeoutSeconds }: Purpose,
  signal: AbortSignal | undefined,
): Promise<void> {
  let pause = FIRST_POLL_MS;
  for (let lastError: unknown = undefined;;) {
    signal?.throwIfAborted();
    try {
      const status = await ask(agent, "guest-exec-status", { pid }, AGENT_SECONDS);
      if (status["exited"] === true) return checkEnd(status, what);
    } catch (error) {
      lastError = error; // a busy guest may answer later
      if (error instanceof SystemFailure || isLibvirtError(error, VIR_ERR.NO_DOMAIN)) throw error;
      if (isLost(error)) throw error;
    }
    if (performance.now() > end) {
      throw new SystemFailure({
        what: `The guest did not ${what} within ${timeoutSeconds} s`,
        cause: lastError,
        fault: "template",
      });
    }
    await sleep(pause, signal);
    pause = Math.min(pause * 1.2, LONGEST_POLL_MS);
  }
}

function checkEnd(status: Readonly<Record<string, unknown>>, what: string): void {
  if (status["exitcode"] === 0) return;
  throw new SystemFailure({
    what: `The guest could not ${what}: ${stderrOf(status) || "it gives no reason"}`,
    fault: "template",
  });
}

/** The end of the script's stderr in one line, from the answer to guest-exec-status. */
export function stderrOf(status: Readonly<Record<string, unknown>>): string {
  return atob(String(status["err-data"] ?? "")).trim().replace(/\s+/g, " ").slice(-500);
}

async function ask(
  agent: Agent,
  execute: string,
  args: object,
  timeoutSeconds: number,
): Promise<Readonly<Record<string, unknown>>> {
  return { ...await agent({ execute, arguments: args }, timeoutSeconds) ?? {} };
}
