// SPDX-License-Identifier: GPL-2.0-or-later
import { LibvirtError, VIR_ERR } from "./error.ts";

export interface CallTime {
  /** A call that takes longer fails, and the connection with it. */
  readonly callSeconds?: number;
  /** Once it aborts, a call in flight gets five more seconds. */
  readonly signal?: AbortSignal | null;
}

const DEFAULT_SECONDS = 60;
const SECONDS_AFTER_ABORT = 5;

/** The time to open a connection. After a cancel, a dead daemon must not keep us. */
export function timeToOpen({ callSeconds = DEFAULT_SECONDS, signal }: CallTime): CallTime {
  if (!signal?.aborted) return { callSeconds, signal };
  return { callSeconds: Math.min(SECONDS_AFTER_ABORT, callSeconds), signal };
}

export function noAnswer(functionName: string, words: string): LibvirtError {
  return lost(functionName, words, VIR_ERR.OPERATION_TIMEOUT);
}

/** The error of a call after which the connection is of no use. */
export function lost(functionName: string, words: string, code: number): LibvirtError {
  return new LibvirtError(functionName, words, {
    code,
    isLost: true,
    advice: "Check the libvirt daemon: systemctl status libvirtd virtqemud, " +
      "journalctl -u libvirtd -u virtqemud",
  });
}

/** Gives the call's result. If the daemon is silent for too long, calls `onStuck` and throws. */
export async function inTime<T>(
  functionName: string,
  call: Promise<T>,
  { callSeconds = DEFAULT_SECONDS, signal }: CallTime,
  onStuck?: () => void,
): Promise<T> {
  const { promise: silence, reject } = Promise.withResolvers<never>();
  const expire = (seconds: number): ReturnType<typeof setTimeout> =>
    setTimeout(() => {
      onStuck?.();
      reject(noAnswer(functionName, `no answer from the daemon within ${seconds} s`));
    }, seconds * 1000);
  let timer = expire(callSeconds);
  const hurry = (): void => {
    clearTimeout(timer);
    timer = expire(Math.min(SECONDS_AFTER_ABORT, callSeconds));
  };
  signal?.addEventListener("abort", hurry);
  try {
    return await Promise.race([call, silence]);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", hurry);
  }
}
