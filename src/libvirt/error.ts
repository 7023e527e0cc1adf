// SPDX-License-Identifier: GPL-2.0-or-later
import type { Libvirt } from "../../ffi/libvirt.ts";
import { cBytes, pointerAt } from "../../ffi/memory.ts";

/** The error numbers that we tell apart, from virErrorNumber in libvirt's virterror.h. */
export const VIR_ERR = {
  INTERNAL_ERROR: 1,
  NO_SUPPORT: 3,
  INVALID_ARG: 8,
  OPERATION_FAILED: 9,
  SYSTEM_ERROR: 38,
  NO_DOMAIN: 42,
  NO_NETWORK: 43,
  AUTH_FAILED: 45,
  NO_STORAGE_POOL: 49,
  NO_STORAGE_VOL: 50,
  OPERATION_INVALID: 55,
  NO_NWFILTER: 62,
  OPERATION_TIMEOUT: 68,
  AUTH_CANCELLED: 79,
  NO_DOMAIN_METADATA: 80,
  ACCESS_DENIED: 88,
  AUTH_UNAVAILABLE: 94,
  NO_NWFILTER_BINDING: 101,
} as const;

/** The advice for an error without advice of its own. */
const LOG_ADVICE = "Check libvirt's log on the host: journalctl -u libvirtd -u virtqemud";

export interface LibvirtErrorOptions {
  readonly code: number;
  /** The kernel's error number, for a {@linkcode VIR_ERR.SYSTEM_ERROR}. */
  readonly errno?: number | null;
  /** Whether the connection is of no use any more. */
  readonly isLost?: boolean;
  readonly advice?: string;
}

/** A call of libvirt that failed: which function, libvirt's own words and number. */
export class LibvirtError extends Error {
  override readonly name = "LibvirtError";
  readonly fault = "libvirt";
  readonly words: string;
  readonly code: number;
  readonly errno: number | null;
  readonly isLost: boolean;
  readonly advice: string;

  constructor(
    functionName: string,
    words: string,
    { code, errno = null, isLost = false, advice }: LibvirtErrorOptions,
  ) {
    super(`libvirt: ${words} (${functionName}, error ${code})`);
    this.words = words;
    this.code = code;
    this.errno = errno;
    this.isLost = isLost;
    this.advice = advice ?? LOG_ADVICE;
  }
}

/** Whether this is an error of libvirt, of one of these numbers if there are any. */
export function isLibvirtError(error: unknown, ...codes: number[]): error is LibvirtError {
  return error instanceof LibvirtError && (codes.length === 0 || codes.includes(error.code));
}

/** Whether this is libvirt's error for a lost connection. */
export function isLost(error: unknown): boolean {
  return isLibvirtError(error) && error.isLost;
}

/** Gives the lookup's value, or null if it fails with this number. Other failures pass through. */
export async function orNull<T>(code: number, lookup: Promise<T>): Promise<T | null> {
  try {
    return await lookup;
  } catch (error) {
    if (isLibvirtError(error, code)) return null;
    throw error;
  }
}

const SIZE_OF_VIR_ERROR = 80; // on 64-bit machines; code at 0, message at 8, int1 at 64
const MOST_WORDS_BYTES = 4096; // of an error, which may quote a guest's agent

/** A place for a `virError` (virterror.h). */
export function errorBuffer(): Uint8Array<ArrayBuffer> {
  return new Uint8Array(SIZE_OF_VIR_ERROR);
}

/** Reads the `virError` in an {@linkcode errorBuffer} and empties it. */
export function takeError(
  functionName: string,
  libvirt: Libvirt,
  buffer: Uint8Array<ArrayBuffer>,
): LibvirtError {
  const view = new DataView(buffer.buffer);
  const code = view.getInt32(0, true);
  const errno = code === VIR_ERR.SYSTEM_ERROR ? view.getInt32(64, true) : null;
  const pointer = Deno.UnsafePointer.of(buffer);
  const message = pointer && pointerAt(pointer, 8);
  const words = message && new TextDecoder().decode(cBytes(message, MOST_WORDS_BYTES));
  libvirt.virResetError(buffer);
  return new LibvirtError(functionName, words ?? "failed and left no message", { code, errno });
}
