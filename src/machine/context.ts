// SPDX-License-Identifier: GPL-2.0-or-later
import type { Config } from "../settings/load.ts";
import type { Sink } from "../guest/ssh_connection.ts";
import type { Connection } from "../libvirt/connection.ts";
import type { Progress } from "../wait.ts";
import type { OnStep } from "./steps.ts";

/** What each stage gets besides its job. */
export interface Stage {
  readonly config: Config;
  readonly connection: Connection;
  /**
   * Opens another connection, for when the first no longer answers. Its calls may take so long, by
   * default as long as those of the first.
   */
  readonly connect: (callSeconds?: number) => Promise<Connection>;
  /** Aborts when the stage is to end; its reason is the error to end with. */
  readonly signal: AbortSignal;
  /** The caller's home directory. */
  readonly home: string | undefined;
  /** Where private keys of machines are kept: the attempt's directory, or by hand the user's own. */
  readonly keyDirectory: string;
  /** Where they are kept that have to outlive the attempt; by hand that is the same. */
  readonly lastingKeyDirectory: string;
  /** Where is kept what could be known of machines that failed. */
  readonly postMortemDirectory: string;
  /** Progress, a line each. */
  readonly log: (line: string) => void;
  /** Shows at the terminal what is waited for; null where there is none. */
  readonly progress: Progress | null;
  /** Told what prepare's steps take, where somebody counts it. */
  readonly onStep: OnStep | null;
  /** Problems that do not end the stage, a line each. */
  readonly warn: (line: string) => void;
  /** Where the output of the script goes. */
  readonly stdout: Sink;
  readonly stderr: Sink;
}
