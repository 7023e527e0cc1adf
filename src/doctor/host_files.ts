// SPDX-License-Identifier: GPL-2.0-or-later
import { isKernelFile, readKernelFile } from "../../ffi/proc.ts";
import type { DoctorContext } from "./check.ts";
import { orMissing } from "../files.ts";

type Root = Pick<DoctorContext, "root">;

/** The text of a file of the host, or null if there is none. Throws if it may not be read. */
export function readHostFile({ root }: Root, path: string): Promise<string | null> {
  if (isOfKernel(root, path)) return Promise.resolve(readKernelFile(path));
  return orMissing(Deno.readTextFile(root + path));
}

/** Whether there is such a file or directory below /sys. */
export async function isInSys({ root }: Root, path: string): Promise<boolean> {
  if (isOfKernel(root, path)) return isKernelFile(path);
  return await orMissing(Deno.stat(root + path)) !== null;
}

/** Whether Deno would not read this file without all permissions. */
function isOfKernel(root: string, path: string): boolean {
  return root === "" && /^\/(proc|sys)\//.test(path);
}

/** As {@linkcode readHostFile}, and null too if this user may not read the file. */
export function readIfAllowed(context: Root, path: string): Promise<string | null> {
  return orNullIfDenied(readHostFile(context, path));
}

/** What is known of a file of the host, behind links, or null if there is none. */
export function statHostFile({ root }: Root, path: string): Promise<Deno.FileInfo | null> {
  return orMissing(Deno.stat(root + path));
}

/** As {@linkcode statHostFile}, and null too if this user may not look. */
export function statIfAllowed(context: Root, path: string): Promise<Deno.FileInfo | null> {
  return orNullIfDenied(statHostFile(context, path));
}

const PROGRAM_DIRECTORIES = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/** Whether the host has this program where daemons look for it. */
export async function hasProgram({ root }: Root, name: string): Promise<boolean> {
  // Not behind links: those of /etc/alternatives lead out of any other root.
  const found = PROGRAM_DIRECTORIES.map((path) => orMissing(Deno.lstat(`${root}${path}/${name}`)));
  return (await Promise.all(found)).some((info) => info !== null);
}

/** The value of a key in one of libvirt's own settings files, or null if it is not set. */
export function readLibvirtSetting(text: string | null, key: string): string | null {
  const line = new RegExp(`^\\s*${key}\\s*=\\s*(.*?)\\s*$`, "m").exec(text ?? "");
  return line?.[1]?.replace(/^"(.*)"$/, "$1") ?? null;
}

async function orNullIfDenied<T>(reading: Promise<T | null>): Promise<T | null> {
  try {
    return await reading;
  } catch (error) {
    if (error instanceof Deno.errors.PermissionDenied) return null;
    throw error;
  }
}
