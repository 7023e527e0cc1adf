// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import type { Connection } from "../libvirt/connection.ts";
import { isLibvirtError } from "../libvirt/error.ts";
import type { StepTimer } from "./steps.ts";
import type { Config } from "../settings/settings.ts";
import { type Progress, retry } from "../wait.ts";

/** Where machines run, and where this host has what belongs to them. */
export interface Host {
  readonly config: Config;
  readonly connection: Connection;
  /**
   * Opens another connection, for when the first no longer answers. Its calls may take so long, by
   * default as long as those of the first.
   */
  readonly connect: (callSeconds?: number) => Promise<Connection>;
  readonly directories: Directories;
}

/** Directories of this host. */
export interface Directories {
  /** The caller's home. */
  readonly home: string | undefined;
  /** Where private keys of machines are kept: the attempt's directory, or by hand the user's own. */
  readonly keys: string;
  /** Where they are kept that have to outlive the attempt; by hand that is the same. */
  readonly lastingKeys: string;
  /** Where is kept what could be known of machines that failed. */
  readonly postMortems: string;
}

/** Who is told what is going on. */
export interface Reporter {
  /** Progress, a line each. */
  readonly log: (line: string) => void;
  /** Problems that do not end the stage, a line each. */
  readonly warn: (line: string) => void;
  /** Shows at the terminal what is waited for; null where there is none. */
  readonly progress: Progress | null;
  /** Measures the steps of what is done. */
  readonly steps: StepTimer;
}

/** In what anything is done to a machine that takes time. */
export interface Context {
  readonly host: Host;
  readonly report: Reporter;
  /** Aborts when the stage is to end; its reason is the error to end with. */
  readonly signal: AbortSignal;
}

/** The same, on this connection. */
export function withConnection(context: Context, connection: Connection): Context {
  return { ...context, host: { ...context.host, connection } };
}

/** The same, until this signal aborts. */
export function withSignal(context: Context, signal: AbortSignal): Context {
  return { ...context, signal };
}

/** The same, where nobody hears of progress. */
export function quiet(context: Context): Context {
  return { ...context, report: { ...context.report, log: () => {} } };
}

/** The same, where nobody hears of problems that do not end it. */
export function withoutWarnings(context: Context): Context {
  return { ...context, report: { ...context.report, warn: () => {} } };
}

/** The same, with steps that begin now. */
export function withOwnSteps(context: Context): Context {
  return { ...context, report: { ...context.report, steps: context.report.steps.anew() } };
}

const RECONNECT_MS = 10_000;

/**
 * Does something on the context's connection. If it fails, all of it is done again on a connection of
 * its own: the daemon may have been started anew, or a call may never have come back. Throws what failed
 * first if there is none.
 */
export async function withReconnect<T>(
  context: Context,
  body: (context: Context) => Promise<T>,
): Promise<T> {
  try {
    return await body(context);
  } catch (error) {
    const { host, signal } = context;
    const end = performance.now() + RECONNECT_MS;
    const isTransient = () => !signal.aborted && performance.now() < end;
    const connecting = retry(() => host.connect(), { pauseMs: 200, isTransient, signal });
    await using fresh = await connecting.catch(() => {
      throw error;
    });
    return await body(withConnection(context, fresh));
  }
}

/**
 * Throws SystemFailure if something failed because the connection to libvirt was lost: nothing else is
 * at fault then. `done` ends the sentence "The connection to libvirt was lost before it had …".
 */
export function throwIfLost(cause: unknown, done: string): void {
  if (!isLibvirtError(cause) || !cause.isLost) return;
  throw new SystemFailure({
    what: `The connection to libvirt was lost before it had ${done}`,
    cause,
  });
}
