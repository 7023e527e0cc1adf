// SPDX-License-Identifier: GPL-2.0-or-later
import { directoryOf, isStickyDirectory, refuseUntrusted } from "../files.ts";

const CONTENT = "the settings";

/**
 * The text of a file that says what jobs may do. Throws SystemFailure if anybody but root and this
 * user could have written it, and what Deno throws if it cannot be read.
 */
export async function readSettingsFile(file: string): Promise<string> {
  using opened = await Deno.open(file);
  const info = await opened.stat(); // of what is read, whatever the name means by now
  if (info.isDirectory) throw new Deno.errors.IsADirectory("it is a directory");
  refuseUntrusted(file, info, CONTENT);
  if (info.isFile) { // a pipe, as of <(command) in bash, is in no directory
    for (const directory of new Set([directoryOf(file), directoryOf(await Deno.realPath(file))])) {
      const info = await Deno.stat(directory);
      if (!isStickyDirectory(info)) refuseUntrusted(directory, info, CONTENT);
    }
  }
  return await new Response(opened.readable).text();
}
