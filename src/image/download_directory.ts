// SPDX-License-Identifier: GPL-2.0-or-later
import { orFailure } from "../errors.ts";
import { refuseUntrusted } from "../files.ts";

/** Makes the directory if it is not there. Throws SystemFailure if other users can write to it. */
export async function openDownloadDirectory(directory: string): Promise<void> {
  await orFailure(Deno.mkdir(directory, { recursive: true, mode: 0o700 }), {
    what: `Cannot create the directory for downloads: "${directory}"`,
  });
  refuseUntrusted(directory, await Deno.stat(directory), "the downloads");
}
