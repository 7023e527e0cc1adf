// SPDX-License-Identifier: GPL-2.0-or-later
import { type Fields, type Given, readFields, type Values } from "./arguments.ts";
import type { Printer } from "./printer.ts";
import { PROGRAM } from "./program_name.ts";
import { UsageError } from "../errors.ts";
import type { Outputs } from "../guest/command_streams.ts";
import type { StartMaster } from "../guest/master/new_master.ts";
import type { Env } from "../job/job.ts";
import type { Context } from "../machine/context.ts";
import type { Counted } from "../metrics/metrics.ts";
import type { Config } from "../settings/settings.ts";

/** What the program gives a command. */
export interface Program {
  readonly env: Env;
  readonly version: string;
  /** The path by which GitLab Runner calls the program. */
  readonly path: string;
  /** Aborts at a cancel, also for a command that goes on after it. */
  readonly signal: AbortSignal;
  readonly printer: Printer;
  /** Where the output of the guest goes. */
  readonly output: Outputs;
  /** Takes a line that is printed after all output of the guest. */
  readonly say: (line: string) => void;
  /** The command and its arguments after `--`; null if there is none. */
  readonly guestCommand: readonly string[] | null;
  /** Loads the settings, once. Throws SystemFailure. */
  readonly settings: () => Promise<Config>;
  /** Connects to libvirt for the body. Throws SystemFailure. */
  readonly onHost: (
    body: (context: Context) => Promise<void>,
    options?: HostOptions,
  ) => Promise<void>;
  /** Starts a connection master, which reads what it is for. */
  readonly startMaster: StartMaster;
  /** Has the script that runs counted in this file, without the settings; null is nowhere. */
  readonly countIn: (metricsFile: string | null) => void;
}

/** How a command connects to libvirt. */
export interface HostOptions {
  /** Instead of the settings. */
  readonly config?: Config;
  /** Loads what the body needs. The connection opens meanwhile, so that this costs no time. */
  readonly load?: () => Promise<unknown>;
}

/** How the program treats a command. */
interface Traits {
  /** Whether the program refills the standby machines after it, if it is a counted stage. */
  readonly refills?: boolean;
  /** Whether it goes on after a cancel. */
  readonly outlastsCancel?: boolean;
  /** Whether, by hand, it exits with the status of its command in the guest, or else with 255. */
  readonly passesStatus?: boolean;
}

/** A command with its arguments, ready to run. */
export interface Invocation extends Traits {
  /** Throws UsageError if the arguments do not fit together. */
  readonly check: (guestCommand: readonly string[] | null) => void;
  /** The stage as which `metrics_file` counts it; null if it does not. */
  readonly countedAs: Counted | null;
  readonly run: (program: Program) => Promise<void>;
}

/** A command of the command line. */
export interface Command {
  readonly name: string;
  readonly description: string;
  readonly footer: string | undefined;
  readonly fields: Fields;
  /** The commands of which its first argument names one; it does nothing else then. */
  readonly commands?: readonly Command[];
  /** The command with these values of its fields. */
  readonly invoke: (given: Given) => Invocation;
}

/** The definition of a command. */
export interface Definition<F extends Fields> extends Traits {
  /**
   * Its help: one sentence, then the text after the options. Backquotes mark the name of an option.
   */
  readonly description: string;
  readonly footer?: string;
  /** Its options and arguments, from `arguments.ts` or its own. */
  readonly fields: F;
  /** Whether a command for the guest may follow `--`. */
  readonly takesCommand?: boolean;
  /** Throws UsageError if the arguments do not fit together. */
  readonly check?: (values: Values<F>, guestCommand: readonly string[] | null) => void;
  /** The stage as which `metrics_file` counts it; null if it does not. */
  readonly countedAs?: (values: Values<F>) => Counted | null;
  readonly run: (values: Values<F>, program: Program) => Promise<void>;
}

/** Makes a command of this name. */
export function defineCommand<const F extends Fields>(
  name: string,
  definition: Definition<F>,
): Command {
  const { description, footer, fields, takesCommand = false, countedAs } = definition;
  const { refills, outlastsCancel, passesStatus } = definition;
  const invoke = (values: Values<F>): Invocation => ({
    check: (guestCommand) => {
      if (guestCommand !== null && !takesCommand) throw unexpectedCommand(name);
      definition.check?.(values, guestCommand);
    },
    countedAs: countedAs?.(values) ?? null,
    refills,
    outlastsCancel,
    passesStatus,
    run: (program) => definition.run(values, program),
  });
  return {
    name,
    description,
    footer,
    fields,
    invoke: (given) => invoke(readFields(fields, given)),
  };
}

/** Makes a command whose first argument names one of these. */
export function defineGroup(
  name: string,
  { description, commands }: {
    readonly description: string;
    readonly commands: readonly Command[];
  },
): Command {
  const invoke = () => {
    throw new Error(`the command ${name} is one of several`);
  };
  return { name, description, footer: undefined, fields: {}, commands, invoke };
}

function unexpectedCommand(name: string): UsageError {
  return new UsageError({
    what: `The command "${name}" takes no arguments after --`,
    advice: `Run ${PROGRAM} ${name} --help`,
  });
}
