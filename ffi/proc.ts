// SPDX-License-Identifier: GPL-2.0-or-later
import { libc, O_RDONLY_CLOEXEC } from "./libc.ts";
import { cString } from "./memory.ts";

/**
 * The functions to read /proc and /sys, where Deno itself opens files only with all permissions.
 */
export const loadProc = libc("open", "read", "close", "readlink", "statvfs", "getpgid");

/** The text of a small file below /proc, or null if it cannot be read. */
export function readProc(path: string): string | null {
  return readKernelFile(`/proc/${path}`);
}

const MOST_BYTES = 1024 * 1024;

/** The text of a file that the kernel makes, cut at a megabyte, or null if it cannot be read. */
export function readKernelFile(path: string): string | null {
  const { open, read, close } = loadProc();
  const file = open(cString(path), O_RDONLY_CLOEXEC);
  if (file < 0) return null;
  const decoder = new TextDecoder();
  const buffer = new Uint8Array(4096);
  let text = "";
  let length = 0;
  do {
    length = Number(read(file, buffer, BigInt(buffer.length)));
    text += decoder.decode(buffer.subarray(0, Math.max(0, length)), { stream: true });
  } while (length > 0 && text.length < MOST_BYTES);
  close(file);
  return length < 0 ? null : text;
}

export function isKernelFile(path: string): boolean {
  const { open, close } = loadProc();
  const file = open(cString(path), O_RDONLY_CLOEXEC);
  if (file >= 0) close(file);
  return file >= 0;
}

/** Whether there is such a process, also where /proc hides those of others (hidepid, proc(5)). */
export function hasProcess(pid: number): boolean {
  return loadProc().getpgid(pid) >= 0;
}

export function readProcLink(path: string): string | null {
  const buffer = new Uint8Array(4096);
  const { readlink } = loadProc();
  const length = Number(readlink(cString(`/proc/${path}`), buffer, BigInt(buffer.length)));
  return length < 0 ? null : new TextDecoder().decode(buffer.subarray(0, length));
}

/** The bytes of a file's file system, in all and for users. node:fs has this too, but loads slowly. */
export function fileSystemSpace(path: string): { total: number; available: number } | null {
  // struct statvfs on 64-bit Linux, of 112 bytes: f_frsize at 8, f_blocks at 16, f_bavail at 32.
  const fields = new BigUint64Array(14);
  if (loadProc().statvfs(cString(path), fields) < 0) return null;
  const [, blockBytes = 0n, blocks = 0n, , available = 0n] = fields;
  return { total: Number(blockBytes * blocks), available: Number(blockBytes * available) };
}
