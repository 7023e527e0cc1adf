// SPDX-License-Identifier: GPL-2.0-or-later
import type { Connection } from "../libvirt/connection.ts";
import { sleep } from "../wait.ts";
import type { Stage } from "./context.ts";

const RECONNECT_MS = 10_000;

/**
 * Does something with the stage's connection. If it fails, all of it is done again on a connection of its
 * own: the daemon may have been started anew, or a call may never have come back. Throws what failed
 * first if there is none.
 */
export async function withReconnect<T>(
  stage: Pick<Stage, "connection" | "connect" | "signal">,
  body: (connection: Connection) => Promise<T>,
): Promise<T> {
  try {
    return await body(stage.connection);
  } catch (error) {
    await using fresh = await reconnect(stage);
    if (fresh === null) throw error;
    return await body(fresh);
  }
}

/** A new connection; null if there is none within some seconds, or none at once after a cancel. */
async function reconnect(
  { connect, signal }: Pick<Stage, "connect" | "signal">,
): Promise<Connection | null> {
  const end = performance.now() + RECONNECT_MS;
  for (;;) {
    try {
      return await connect();
    } catch {
      if (signal.aborted || performance.now() > end) return null;
      await sleep(200, signal);
    }
  }
}
