// SPDX-License-Identifier: GPL-2.0-or-later
import { type Failure, SystemFailure } from "../errors.ts";
import type { Connection } from "../libvirt/connection.ts";
import { isLost } from "../libvirt/error.ts";
import type { StepTimer } from "./steps.ts";
import type { Config } from "../settings/settings.ts";
import { type Progress, retry } from "../wait.ts";

/** The hypervisor, and this host's directories for its machines. */
export interface Host {
  readonly config: Config;
  readonly connection: Connection;
  /** Opens another connection. `callSeconds` limits its calls, by default as the first one's. */
  readonly connect: (callSeconds?: number) => Promise<Connection>;
  readonly directories: Directories;
}

/** Directories of this host. */
export interface Directories {
  /** The caller's home. */
  readonly home: string | undefined;
  /** For machines' private keys: the attempt's directory, or by hand the user's own. */
  readonly keys: string;
  /** For keys that must outlive the attempt; by hand the same. */
  readonly lastingKeys: string;
  readonly postMortems: string;
}

/** Where a stage reports to. */
export interface Reporter {
  /** Takes a line of progress. */
  readonly log: (line: string) => void;
  /** Takes a problem that does not end the stage. */
  readonly warn: (line: string) => void;
  /** Shows at the terminal what is waited for; null without a terminal. */
  readonly progress: Progress | null;
  readonly steps: StepTimer;
}

/** What every act on a machine needs. */
export interface Context {
  readonly host: Host;
  readonly report: Reporter;
  /** Aborts when the stage must end. Its reason is the error to end with. */
  readonly signal: AbortSignal;
}

/** The context with another connection. */
export function withConnection(context: Context, connection: Connection): Context {
  return { ...context, host: { ...context.host, connection } };
}

/** The context with another signal. */
export function withSignal(context: Context, signal: AbortSignal): Context {
  return { ...context, signal };
}

/** The context without progress lines. */
export function quiet(context: Context): Context {
  return { ...context, report: { ...context.report, log: () => {} } };
}

/** The context without warnings. */
export function withoutWarnings(context: Context): Context {
  return { ...context, report: { ...context.report, warn: () => {} } };
}

/** The context with a new timer, whose first step begins now. */
export function withOwnSteps(context: Context): Context {
  return { ...context, report: { ...context.report, steps: context.report.steps.anew() } };
}

const RECONNECT_MS = 10_000;

/**
 * Does something. If it fails, does it again on a new connection: the daemon may have been restarted, or
 * a call may have hung. Throws the first error if there is no new connection within ten seconds.
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
 * The failure of something that libvirt did not do, unless the cause is a lost connection: then it says
 * so. `done` ends the sentence "The connection to libvirt was lost before it had …".
 */
export function failureOf(
  cause: unknown,
  done: string,
  failure: Omit<Failure, "cause">,
): SystemFailure {
  const what = `The connection to libvirt was lost before it had ${done}`;
  return new SystemFailure(isLost(cause) ? { what, cause } : { ...failure, cause });
}
