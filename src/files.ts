// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "./errors.ts";

const WRITABLE_BY_OTHERS = 0o022;
const STICKY = 0o1000;

/** Whether only its owner may replace a file in the directory, as in /tmp. */
export function isStickyDirectory({ mode }: Pick<Deno.FileInfo, "mode">): boolean {
  return ((mode ?? 0) & STICKY) !== 0;
}

/** Throws SystemFailure if other users can write to this path. `content` is "the settings", say. */
export function refuseUntrusted(
  path: string,
  { mode, uid }: Pick<Deno.FileInfo, "mode" | "uid">,
  content: string,
): void {
  const what = `Other users can write ${content}: "${path}"`;
  if (uid !== 0 && uid !== Deno.uid()) {
    throw new SystemFailure({
      what: `${what} belongs to the user ${uid}`,
      advice: `chown root "${path}"`,
    });
  }
  if (((mode ?? 0) & WRITABLE_BY_OTHERS) !== 0) {
    throw new SystemFailure({
      what: `${what} has the mode ${((mode ?? 0) & 0o7777).toString(8)}`,
      advice: isStickyDirectory({ mode }) // which is as it must be, for other files
        ? `Use a directory for ${content} that only this user can write to`
        : `chmod go-w "${path}"`,
    });
  }
}

/** Gives the promise's value, or null if its file does not exist, or no longer does. */
export async function orMissing<T>(result: Promise<T>): Promise<T | null> {
  try {
    return await result;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) {
      return null;
    }
    throw error;
  }
}

/** Whether the file or directory may exist: false only if it certainly does not. */
export async function mayExist(path: string): Promise<boolean> {
  return await orMissing(Deno.stat(path)).catch(() => true) !== null;
}

/** The directory of a path. Without node:path, which would cost every call 10 ms. */
export function directoryOf(path: string): string {
  const slash = path.lastIndexOf("/");
  return slash < 0 ? "." : path.slice(0, slash) || "/";
}
