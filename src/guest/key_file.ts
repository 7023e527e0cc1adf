// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";

/** The file of the private key that a machine of ours lets in. */
export function keyFile(directory: string, machine: string): string {
  return `${directory}/${machine}.libvirt-gci-key`;
}

/** Whether this is such a file of this machine, in whatever directory. */
export function isKeyFileOf(machine: string, file: string): boolean {
  return file.endsWith(keyFile("", machine));
}

/**
 * Writes the private key of a machine to a file in this directory that only this user may read, and
 * gives its path. Makes the directory if need be, for this user alone. Throws SystemFailure.
 */
export async function writeKeyFile(
  directory: string,
  machine: string,
  privateKey: string,
): Promise<string> {
  const file = keyFile(directory, machine);
  try {
    await Deno.mkdir(directory, { recursive: true, mode: 0o700 });
    await refuseForeign(directory);
    await Deno.writeTextFile(file, privateKey, { createNew: true, mode: 0o600 });
    return file;
  } catch (cause) {
    throw new SystemFailure({
      what: `Cannot keep the key of the machine "${machine}" in "${file}"`,
      cause,
      advice: "Let this user write to that directory, and nobody else",
    });
  }
}

/** Deletes the file, if it is there. */
export async function deleteKeyFile(file: string): Promise<boolean> {
  try {
    await Deno.remove(file);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) {
      return false;
    }
    throw error;
  }
}

/**
 * Refuses a directory that somebody else made for us, who could exchange the files in it. Throws
 * SystemFailure.
 */
export async function refuseForeign(directory: string): Promise<void> {
  const { uid, mode } = await Deno.stat(directory);
  if (uid === Deno.uid() && ((mode ?? 0) & 0o022) === 0) return;
  throw new SystemFailure({ what: `Others than this user may write to "${directory}"` });
}
