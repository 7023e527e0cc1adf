// SPDX-License-Identifier: GPL-2.0-or-later
import { controlSocket } from "../guest/master/control_socket.ts";
import type { MasterTask } from "../guest/master/master.ts";
import { isFirstFailure } from "./kept.ts";
import type { Machine } from "./machine.ts";
import { CHANNEL_ADDRESS } from "./ssh_channel.ts";

/** What a connection master takes, with some output on its way. */
export const MASTER_MIB = 40;

/** Starts a process that reads its standard input. What is given is that; without, it is empty. */
export type StartWithInput = () => (input: string) => Promise<void>;

/**
 * Starts the connection master of a job's machine: the process while the machine boots, so that it costs
 * prepare nothing, and its work when prepare knows how to log in. A job can do without: nothing fails.
 */
export class MasterStarter {
  readonly #startProcess: StartWithInput;
  #give: ((input: string) => Promise<void>) | null = null;

  constructor(startProcess: StartWithInput) {
    this.#startProcess = startProcess;
  }

  /** Starts the process, unless it is there. */
  readonly start = (): void => {
    try {
      this.#give ??= this.#startProcess();
    } catch {
      // Each script connects by itself.
    }
  };

  /** Says what it is to do, now that the machine is ready. */
  async give(machine: Machine, metricsFile: string | null): Promise<void> {
    try {
      const task = await masterTask(machine, metricsFile);
      if (task !== null) await this.#give?.(JSON.stringify(task));
    } catch {
      // Each script connects by itself.
    }
  }
}

/** What the machine's master is for; null if it can have none. */
async function masterTask(
  { name, domain, metadata }: Machine,
  metricsFile: string | null,
): Promise<MasterTask | null> {
  const { attemptDir, address, port, user, hostKey, deadline, shell, key } = metadata;
  const socket = controlSocket(attemptDir);
  if (attemptDir === "" || socket === null || address === CHANNEL_ADDRESS) return null;
  const privateKey = await Deno.readTextFile(key);
  return {
    ...{ machine: name, domain, socket, deadline, metricsFile },
    keeps: isFirstFailure(metadata),
    shell: shell === "sh" ? "sh" : "bash",
    login: { address, port: port ?? 22, user, privateKey, hostKey: hostKey || null, channel: null },
  };
}
