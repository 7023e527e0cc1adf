// SPDX-License-Identifier: GPL-2.0-or-later
import type { Connection } from "../libvirt/connection.ts";
import { type Context, withConnection } from "./context.ts";
import { sleep } from "../wait.ts";

const RECONNECT_MS = 10_000;

/**
 * Does something on the context's connection. If it fails, all of it is done again on a connection of
 * its own: the daemon may have been started anew, or a call may never have come back. Throws what failed
 * first if there is none.
 */
export async function withReconnect<T>(
  context: Context,
  body: (context: Context) => Promise<T>,
): Promise<T> {
  try {
    return await body(context);
  } catch (error) {
    await using fresh = await reconnect(context);
    if (fresh === null) throw error;
    return await body(withConnection(context, fresh));
  }
}

/** A new connection; null if there is none within some seconds, or none at once after a cancel. */
async function reconnect({ host, signal }: Context): Promise<Connection | null> {
  const end = performance.now() + RECONNECT_MS;
  for (;;) {
    try {
      return await host.connect();
    } catch {
      if (signal.aborted || performance.now() > end) return null;
      await sleep(200, signal);
    }
  }
}
