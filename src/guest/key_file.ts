// SPDX-License-Identifier: GPL-2.0-or-later
import { orFailure, SystemFailure } from "../errors.ts";
import { orMissing } from "../files.ts";

const ADVICE =
  "Remove other users' write permission on the directory, or set HOME to this user's " +
  "home";

/** The file with the private key for a machine of ours. */
export function keyFile(directory: string, machine: string): string {
  return `${directory}/${machine}.libvirt-gci-key`;
}

export function isKeyFileOf(machine: string, file: string): boolean {
  return file.endsWith(keyFile("", machine));
}

/** Writes a private key to a file that only this user can read. Throws SystemFailure. */
export async function writeKeyFile(
  directory: string,
  machine: string,
  privateKey: string,
): Promise<string> {
  const file = keyFile(directory, machine);
  const write = async (): Promise<string> => {
    await Deno.mkdir(directory, { recursive: true, mode: 0o700 });
    await refuseForeign(directory);
    await Deno.writeTextFile(file, privateKey, { createNew: true, mode: 0o600 });
    return file;
  };
  const what = `Cannot write the key of the machine "${machine}" in "${file}"`;
  return await orFailure(write(), { what, advice: ADVICE });
}

export async function removeKeyFile(file: string): Promise<boolean> {
  const removed = orMissing(Deno.remove(file).then(() => true));
  const what = `Cannot delete the machine's key "${file}"`;
  return await orFailure(removed, { what, advice: ADVICE }) ?? false;
}

const KEY_ENDING = keyFile("", "").slice(1);

/**
 * The names of the machines that have key files in this directory; none if it does not exist. Throws
 * SystemFailure.
 */
export async function namesOfKeyFiles(directory: string): Promise<string[]> {
  const listed = orMissing(Array.fromAsync(Deno.readDir(directory), ({ name }) => name));
  const what = `Cannot list the machines' keys in "${directory}"`;
  const files = await orFailure(listed, { what, advice: ADVICE }) ?? [];
  return files.filter((file) => file.endsWith(KEY_ENDING))
    .map((file) => file.slice(0, -KEY_ENDING.length));
}

/** Refuses a directory in which another user could replace files. Throws SystemFailure. */
export async function refuseForeign(directory: string): Promise<void> {
  const { uid, mode } = await Deno.stat(directory);
  if (uid === Deno.uid() && ((mode ?? 0) & 0o022) === 0) return;
  throw new SystemFailure({ what: `Other users can write to "${directory}"` });
}
