// SPDX-License-Identifier: GPL-2.0-or-later
import { hasProcess, readProc, readProcLink } from "../../ffi/proc.ts";
import { shortHash } from "../sha256.ts";

/** A process as `PID START BOOT`, or null if it does not run. A PID alone may be used again. */
export function processMark(pid: number): string | null {
  if (pid <= 1) return null; // init adopts orphans
  const stat = readProc(`${pid}/stat`);
  // The 2nd field, the name in brackets, may have any characters. The state is the 3rd, the start the 22nd.
  const fields = stat?.slice(stat.lastIndexOf(")") + 2).split(" ");
  if (fields === undefined || /^[ZX]/.test(fields[0] ?? "")) return null; // dead, but not reaped yet
  return [pid, fields[19], readProc("sys/kernel/random/boot_id")?.trim()].join(" ");
}

/** Whether the process runs. If /proc hides processes of other users, its PID decides. */
export function isRunning(mark: string): boolean {
  if (mark === "") return false;
  const pid = Number.parseInt(mark);
  return processMark(pid) === mark || readProc(`${pid}/stat`) === null && hasProcess(pid);
}

const UNKNOWN = "0-0-00000000";

/** A process and its host as a volume's name has them. */
export interface ProcessInName {
  /** As `PID-START-BOOT`. */
  readonly process: string;
  /** See {@linkcode hostMark}; empty if unknown. */
  readonly host: string;
}

/** This process, for a volume's name. */
export async function ownProcessInName(): Promise<ProcessInName> {
  const process = inName(Deno.pid) ?? UNKNOWN;
  return { process, host: process === UNKNOWN ? "" : await hostMark() };
}

/** Whether the process runs; null if that cannot be told from this host. */
export async function runsByName({ process, host }: ProcessInName): Promise<boolean | null> {
  if (host === "" || host !== await hostMark()) return null;
  return inName(Number.parseInt(process)) === process;
}

function inName(pid: number): string | null {
  const [number, start, boot] = processMark(pid)?.split(" ") ?? [];
  return number === undefined ? null : `${number}-${start}-${boot?.slice(0, 8)}`;
}

/** The host's name. */
export function hostName(): string {
  return readProc("sys/kernel/hostname")?.trim() || "localhost";
}

let mark: Promise<string> | undefined;

/**
 * A hash for this host: of its machine-id, which must not be shown (machine-id(5)), and its PID
 * namespace, outside of which PIDs mean nothing. Empty if unknown.
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
