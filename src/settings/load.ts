// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { directoryOf, isStickyDirectory, orMissing, refuseUntrusted } from "../files.ts";
import { parseConfig } from "./read.ts";
import { type Config, DEFAULT_CONFIG } from "./settings.ts";

const CONTENT = "the settings";

export interface ConfigPlaces {
  /** `--config`: this file and no other. */
  readonly file?: string | undefined;
  readonly home: string | undefined;
  readonly xdgConfigHome: string | undefined;
}

/**
 * Reads the first of `--config`, `/etc/libvirt-gci/config.yaml` and the user's own file; without any, the
 * defaults hold. Throws SystemFailure with all mistakes at once, or if other users can write the file.
 */
export async function loadConfig({ file, home, xdgConfigHome }: ConfigPlaces): Promise<Config> {
  const user = xdgConfigHome || (home && `${home}/.config`);
  const places = file !== undefined
    ? [file]
    : ["/etc/libvirt-gci/config.yaml", ...(user ? [`${user}/libvirt-gci/config.yaml`] : [])];
  for (const place of places) {
    try {
      const reading = readSettingsFile(place);
      // The home of a user that has none is often /dev/null.
      const text = file === undefined ? await orMissing(reading) : await reading;
      if (text !== null) return parseConfig(text, place);
    } catch (cause) {
      if (cause instanceof SystemFailure) throw cause;
      throw new SystemFailure({
        what: `Cannot read the settings in "${place}"`,
        cause,
        advice: "Check that the file exists and that this user can read it",
      });
    }
  }
  return DEFAULT_CONFIG;
}

/** Reads the file. Throws SystemFailure if others could have written it, and Deno's own errors. */
async function readSettingsFile(file: string): Promise<string> {
  using opened = await Deno.open(file);
  const info = await opened.stat(); // of the open file, whatever the name leads to by now
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
