// SPDX-License-Identifier: GPL-2.0-or-later
import { type Context, withConnection } from "./context.ts";
import { retry } from "../wait.ts";

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
    const { host, signal } = context;
    const end = performance.now() + RECONNECT_MS;
    const isTransient = () => !signal.aborted && performance.now() < end;
    const connecting = retry(() => host.connect(), { pauseMs: 200, isTransient, signal });
    await using fresh = await connecting.catch(() => {
      throw error;
    });
    return await body(withConnection(context, fresh));
  }
}
