// SPDX-License-Identifier: GPL-2.0-or-later
import { hasProcess, readProc, readProcLink } from "../../ffi/proc.ts";
import { shortHash } from "../sha256.ts";

/**
 * A process as `PID START BOOT`, or null if there is none: another process may get its number, and
 * after a boot of the host even the same time of start.
 */
export function processMark(pid: number): string | null {
  if (pid <= 1) return null; // init adopts whose parent is gone
  const stat = readProc(`${pid}/stat`);
  // The name, in brackets, may hold any characters; the state is the 3rd field, the start the 22nd.
  const fields = stat?.slice(stat.lastIndexOf(")") + 2).split(" ");
  if (fields === undefined || /^[ZX]/.test(fields[0] ?? "")) return null; // dead, not yet buried
  return [pid, fields[19], readProc("sys/kernel/random/boot_id")?.trim()].join(" ");
}

/** Whether the process runs, or may: what has its number now may be hidden from us. */
export function isRunning(mark: string): boolean {
  if (mark === "") return false;
  const pid = Number.parseInt(mark);
  return processMark(pid) === mark || readProc(`${pid}/stat`) === null && hasProcess(pid);
}

/** What this host is called. */
export function hostName(): string {
  return readProc("sys/kernel/hostname")?.trim() || "localhost";
}

let mark: Promise<string> | undefined;

/**
 * This host, and nobody else's: a hash of its machine-id, which is not to be shown (machine-id(5)),
 * and of the process ids' namespace, since those of a container mean nothing outside. Empty if
 * unknown.
 */
export function hostMark(): Promise<string> {
  return mark ??= makeHostMark();
}

async function makeHostMark(): Promise<string> {
  const read = (file: string) => Deno.readTextFile(file).catch(() => "");
  const id = (await read("/etc/machine-id") || await read("/etc/hostname")).trim();
  const namespace = readProcLink("self/ns/pid");
  if (id === "" || namespace === null) return "";
  return await shortHash(`libvirt-gci ${id} ${namespace}`);
}
