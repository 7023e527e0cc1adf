// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * Does the task for each item, for so many at once at most. The next item is asked for when there is room for
 * it. When one fails, it aborts `stop`; when all have ended, it throws what failed first.
 */
export async function inParallel<T>(
  items: Iterable<T> | AsyncIterable<T>,
  { most, stop }: { readonly most: number; readonly stop: AbortController },
  task: (item: T) => Promise<void>,
): Promise<void> {
  const iterator = Symbol.asyncIterator in items
    ? items[Symbol.asyncIterator]()
    : items[Symbol.iterator]();
  const work = async (): Promise<void> => {
    try {
      while (!stop.signal.aborted) {
        const { done, value } = await iterator.next();
        if (done) return;
        await task(value);
      }
    } catch (error) {
      stop.abort(error);
    }
  };
  await Promise.all(Array.from({ length: most }, work));
  await iterator.return?.();
  stop.signal.throwIfAborted();
}
