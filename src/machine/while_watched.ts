// SPDX-License-Identifier: GPL-2.0-or-later
import { rejectAtAbort, sleep, within } from "../wait.ts";

/** The time before libvirt is asked about the machine: most scripts end before. */
const BLIND_MS = 2000;
const WATCH_END_MS = 1000;

/**
 * Runs a script, and watches its machine once that takes a while. The watcher aborts `ended` with the
 * reason when the machine has ended; then `lost` rejects with it.
 */
export async function whileWatched<T>(
  watcher: (ended: AbortController) => Promise<void>,
  run: (ended: AbortSignal, lost: Promise<never>) => Promise<T>,
): Promise<T> {
  const ended = new AbortController();
  const watching = sleep(BLIND_MS, ended.signal).then(() => {
    if (!ended.signal.aborted) return watcher(ended);
  });
  const lost = rejectAtAbort(ended.signal);
  try {
    return await run(ended.signal, lost);
  } finally {
    ended.abort();
    await within(watching, WATCH_END_MS);
  }
}
