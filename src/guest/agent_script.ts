// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { sleep } from "../wait.ts";
import type { Agent } from "./agent_channel.ts";

const AGENT_SECONDS = 5;
const POLL_MS = 15;

/**
 * Has the guest's agent run a script for sh, as root, and resolves when it has ended well. What the
 * script has in it, the agent does not log. Throws SystemFailure with what it wrote to stderr.
 */
export async function runByAgent(
  agent: Agent,
  script: string,
  { what, timeoutSeconds }: { readonly what: string; readonly timeoutSeconds: number },
): Promise<void> {
  const end = performance.now() + timeoutSeconds * 1000;
  const started = await ask(agent, "guest-exec", {
    path: "/bin/sh",
    arg: ["-s"],
    "input-data": new TextEncoder().encode(script).toBase64(),
    "capture-output": true,
  }, timeoutSeconds);
  for (let lastError: unknown = undefined;;) {
    try {
      const status = await ask(agent, "guest-exec-status", { pid: started["pid"] }, AGENT_SECONDS);
      if (status["exited"] === true) return checkEnd(status, what);
    } catch (error) {
      lastError = error; // a busy guest may answer later
      if (error instanceof SystemFailure) throw error;
    }
    if (performance.now() > end) {
      throw new SystemFailure({
        what: `The guest did not ${what} within ${timeoutSeconds} s`,
        cause: lastError,
        fault: "template",
      });
    }
    await sleep(POLL_MS);
  }
}

/** Throws SystemFailure if the script ended with another status than 0. */
function checkEnd(status: Readonly<Record<string, unknown>>, what: string): void {
  if (status["exitcode"] === 0) return;
  const words = atob(String(status["err-data"] ?? "")).trim().replace(/\s+/g, " ");
  throw new SystemFailure({
    what: `The guest could not ${what}: ${words.slice(-500) || "it does not say why"}`,
    fault: "template",
  });
}

async function ask(
  agent: Agent,
  execute: string,
  args: object,
  timeoutSeconds: number,
): Promise<Readonly<Record<string, unknown>>> {
  return { ...await agent({ execute, arguments: args }, timeoutSeconds) ?? {} };
}
