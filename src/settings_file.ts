// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "./errors.ts";

const WRITABLE_BY_OTHERS = 0o022;
const STICKY = 0o1000;

/**
 * The text of a file that says what jobs may do. Throws SystemFailure if anybody but root and this
 * user could have written it, and what Deno throws if it cannot be read.
 */
export async function readSettingsFile(file: string): Promise<string> {
  using opened = await Deno.open(file);
  const info = await opened.stat(); // of what is read, whatever the name means by now
  if (info.isDirectory) throw new Deno.errors.IsADirectory("it is a directory");
  refuseUntrusted(file, info);
  if (info.isFile) { // a pipe, as of <(command) in bash, is in no directory
    for (const directory of new Set([directoryOf(file), directoryOf(await Deno.realPath(file))])) {
      const info = await Deno.stat(directory);
      // Where the sticky bit is, as in /tmp, nobody replaces another's file.
      if (((info.mode ?? 0) & STICKY) === 0) refuseUntrusted(directory, info);
    }
  }
  return await new Response(opened.readable).text();
}

/** Without node:path, which would cost every call 10 ms. */
function directoryOf(path: string): string {
  const slash = path.lastIndexOf("/");
  return slash < 0 ? "." : path.slice(0, slash) || "/";
}

function refuseUntrusted(path: string, { mode, uid }: Deno.FileInfo): void {
  if (uid !== 0 && uid !== Deno.uid()) {
    throw new SystemFailure({
      what: `Somebody else may write the settings: "${path}" belongs to the user ${uid}`,
      advice: `chown root "${path}"`,
    });
  }
  if (((mode ?? 0) & WRITABLE_BY_OTHERS) !== 0) {
    const bits = ((mode ?? 0) & 0o7777).toString(8);
    throw new SystemFailure({
      what: `Somebody else may write the settings: "${path}" has the mode ${bits}`,
      advice: `chmod go-w "${path}"`,
    });
  }
}
