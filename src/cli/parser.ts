// SPDX-License-Identifier: GPL-2.0-or-later
import { object, or } from "@optique/core/constructs";
import { runParserSync } from "@optique/core/facade";
import { message, optionName } from "@optique/core/message";
import { multiple, optional, withDefault } from "@optique/core/modifiers";
import { argument, command, constant, flag, option } from "@optique/core/primitives";
import { string } from "@optique/core/valueparser";
import { UsageError } from "../errors.ts";

/** The program's name in messages, whatever the file is called. */
export const PROGRAM = "libvirt-gci";

const machineOption = optional(
  option("-m", "--machine", string({ metavar: "NAME" }), {
    description: message`The name of the machine.`,
  }),
);

const distroOption = optional(
  option("-d", "--distro", string({ metavar: "NAME" }), {
    description: message`The template, instead of the one that the job asks for.`,
  }),
);

const machineArgument = argument(string({ metavar: "MACHINE" }), {
  description: message`The name of the machine.`,
});

const jsonFlag = withDefault(flag("--json", { description: message`Print JSON.` }), false);

const duration = string({
  metavar: "DURATION",
  pattern: /^[1-9]\d{0,5}[smhd]$/,
  errors: { patternMismatch: message`Write a number and s, m, h or d, such as 2h.` },
});

const configCommand = command(
  "config",
  object({ command: constant("config"), distro: distroOption }),
  {
    description:
      message`Print for GitLab Runner's config_exec what the later stages need, as JSON.`,
  },
);

const prepareCommand = command(
  "prepare",
  object({
    command: constant("prepare"),
    distro: distroOption,
    machine: machineOption,
    keyFile: optional(
      option("--ssh-key-file", string({ metavar: "PATH" }), {
        description: message`The private key to log in with, instead of the one in the settings.`,
      }),
    ),
  }),
  {
    description: message`Start a machine for the job and wait until it can be logged in to.`,
    footer: message`By hand, without ${
      optionName("--machine")
    }, the machine gets a name, which is printed.`,
  },
);

const runCommand = command(
  "run",
  object({
    command: constant("run"),
    machine: machineOption,
    script: withDefault(
      flag("--script", { description: message`Says that a script follows: it always does.` }),
      false,
    ),
    path: optional(
      argument(string({ metavar: "PATH" }), {
        description: message`The script, a file on this host.`,
      }),
    ),
    stage: optional(
      argument(string({ metavar: "STAGE" }), {
        description: message`GitLab's name for what the script does.`,
      }),
    ),
  }),
  {
    description: message`Run a script in the machine, or a command that follows ${"--"}.`,
    footer: message`By hand: libvirt-gci run --machine NAME -- COMMAND [ARG...]`,
  },
);

const cleanupCommand = command(
  "cleanup",
  object({
    command: constant("cleanup"),
    machine: machineOption,
    all: withDefault(
      flag("--all", {
        description: message`Remove all machines of libvirt-gci, also those that jobs need.`,
      }),
      false,
    ),
    yes: withDefault(
      flag("--yes", { description: message`With ${"--all"}, do not ask whether that is meant.` }),
      false,
    ),
  }),
  { description: message`Remove the machine and all that belongs to it.` },
);

const gcCommand = command(
  "gc",
  object({
    command: constant("gc"),
    dryRun: withDefault(
      flag("--dry-run", { description: message`Only say what would be removed, and why.` }),
      false,
    ),
    olderThan: optional(
      option("--older-than", duration, {
        description:
          message`Remove also what was made longer ago, by its own record: machines by hand, and those of jobs that still run. Such as 90m, 2h or 7d.`,
      }),
    ),
  }),
  {
    description: message`Remove what is left of machines that no job and no person needs any more.`,
    footer:
      message`A job needs its machine until its timeout and ten minutes have passed, or until GitLab Runner and the attempt's directory are gone. A machine by hand is needed until somebody removes it.`,
  },
);

const listCommand = command(
  "list",
  object({
    command: constant("list"),
    json: jsonFlag,
  }),
  {
    description: message`Show the machines of libvirt-gci, and what is left of earlier ones.`,
    footer:
      message`States: standby, which waits for a job; waiting, for room; starting; ready; crashed, by a panic; halted, for its disk cannot be written; kept after its job; orphan, which runs and nobody needs; leftover, which does not run.`,
  },
);

const keepCommand = command(
  "keep",
  object({
    command: constant("keep"),
    machine: machineArgument,
    extend: withDefault(
      option("--extend", duration, {
        description: message`How much longer to keep it, such as 30m or 2h; an hour by default.`,
      }),
      "60m",
    ),
  }),
  {
    description:
      message`Keep a job's machine after its job, whether that fails or not, or keep it longer.`,
    footer:
      message`What was kept already, after a failure or by this command, is kept so much longer. A machine by hand stays anyway.`,
  },
);

const sshCommand = command(
  "ssh",
  object({
    command: constant("ssh"),
    machine: machineArgument,
  }),
  {
    description:
      message`Log in to a machine at your terminal, or run a command there that follows ${"--"}.`,
  },
);

const logsCommand = command(
  "logs",
  object({
    command: constant("logs"),
    machine: machineArgument,
  }),
  { description: message`Print what a machine wrote on its serial console.` },
);

const consoleCommand = command(
  "console",
  object({
    command: constant("console"),
    machine: machineArgument,
    force: withDefault(
      flag("--force", { description: message`End the session of whoever has the console.` }),
      false,
    ),
  }),
  {
    description:
      message`Connect your terminal to a machine's serial console, until you type ^] or it ends.`,
    footer: message`Without a terminal, it prints what comes, until the machine ends.`,
  },
);

const doctorCommand = command(
  "doctor",
  object({
    command: constant("doctor"),
    boot: optional(
      option("--boot", string({ metavar: "TEMPLATE" }), {
        description: message`Run a whole job on this template too.`,
      }),
    ),
    json: jsonFlag,
  }),
  {
    description:
      message`Check this host: what keeps jobs from running, what it means and what mends it.`,
    footer: message`It ends with 2 if there is a problem, and with 0 if there are warnings only.`,
  },
);

const explainCommand = command(
  "explain",
  object({
    command: constant("explain"),
    distro: distroOption,
    project: optional(
      option("--project", string({ metavar: "PATH" }), {
        description: message`The full path of the job's project, which GitLab would say.`,
      }),
    ),
    protected: withDefault(
      flag("--protected", {
        description: message`Take the job for one of a protected branch or tag.`,
      }),
      false,
    ),
    variables: optional(
      option("--variables", string({ metavar: "FILE" }), {
        description: message`The job's variables, a line KEY=VALUE for each.`,
      }),
    ),
    json: jsonFlag,
  }),
  {
    description: message`Say what a job would get, and why, without asking libvirt.`,
    footer:
      message`By hand, the job's variables have the prefix CUSTOM_ENV_, as in the stages; in ${
        optionName("--variables")
      } they need none.`,
  },
);

const warmCommand = command(
  "warm",
  object({
    command: constant("warm"),
    templates: multiple(
      argument(string({ metavar: "TEMPLATE" }), {
        description:
          message`The template; without any, all of which the settings want machines resumed.`,
      }),
    ),
    drop: withDefault(
      flag("--drop", { description: message`Remove the warm images of these templates.` }),
      false,
    ),
  }),
  {
    description:
      message`Save the RAM of a booted machine, from which jobs' machines of the template are resumed.`,
    footer:
      message`It takes the setting "start" for jobs to use it. It does nothing for a template whose warm image still holds.`,
  },
);

const standbyCommand = command(
  "standby",
  object({
    command: constant("standby"),
    drop: withDefault(
      flag("--drop", { description: message`Have none wait any more.` }),
      false,
    ),
  }),
  {
    description:
      message`Have as many resumed machines wait for jobs as the setting "standby" says, and remove those that no job could get.`,
    footer: message`Each prepare and cleanup does so in the background.`,
  },
);

const parser = object({
  debug: withDefault(
    flag("--debug", { description: message`Tell each call of libvirt, and where errors arose.` }),
    false,
  ),
  config: optional(
    option("--config", string({ metavar: "FILE" }), {
      description:
        message`The settings, instead of /etc/libvirt-gci/config.yaml or, without that, ~/.config/libvirt-gci/config.yaml.`,
    }),
  ),
  action: or(
    configCommand,
    prepareCommand,
    runCommand,
    cleanupCommand,
    gcCommand,
    listCommand,
    keepCommand,
    sshCommand,
    logsCommand,
    consoleCommand,
    doctorCommand,
    explainCommand,
    warmCommand,
    standbyCommand,
  ),
});

/** What the command line asks for. */
export type Arguments = ReturnType<typeof parseWithHelp> & {
  /** The command and its arguments behind `--`, if there is one. */
  readonly guestCommand: readonly string[] | null;
};

/** What the parser prints and how it ends the program. It ends it for `--help` and mistakes. */
export interface CliOutput {
  readonly stdout: (text: string) => void;
  readonly stderr: (text: string) => void;
  readonly exit: (status: number) => never;
}

/**
 * Reads the command line. What stands behind `--` belongs to the guest, whatever it looks like. For
 * `--help`, `--version`, `completions` and mistakes, prints and ends the program: mistakes with 2.
 */
export function parseArguments(
  args: readonly string[],
  { version, output }: { readonly version: string; readonly output: CliOutput },
): Arguments {
  const dashes = args.indexOf("--");
  const own = dashes < 0 ? args : args.slice(0, dashes);
  const guestCommand = dashes < 0 ? null : args.slice(dashes + 1);
  const parsed = { ...parseWithHelp(own, version, output), guestCommand };
  checkTogether(parsed);
  return parsed;
}

function parseWithHelp(args: readonly string[], version: string, output: CliOutput) {
  return runParserSync(parser, PROGRAM, args, {
    brief: message`Run GitLab CI jobs in throw-away virtual machines of libvirt.`,
    help: { command: true, option: true, onShow: () => output.exit(0) },
    version: { option: true, value: version, onShow: () => output.exit(0) },
    completion: {
      command: { names: ["completions"] },
      onShow: (status: number) => output.exit(status),
    },
    aboveError: args.length === 0 ? "usage" : "none",
    onError: () => {
      const command = args.find((word) => COMMANDS.includes(word));
      output.stderr(`What to do: See ${[PROGRAM, command ?? []].flat().join(" ")} --help`);
      return output.exit(2);
    },
    stdout: output.stdout,
    stderr: output.stderr,
    termWidth: "auto",
  });
}

const COMMANDS = [
  ...["config", "prepare", "run", "cleanup", "gc", "list", "keep", "ssh", "logs", "console"],
  ...["doctor", "explain", "warm", "standby", "completions"],
];

const SECONDS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 };

/** The seconds of a duration such as `2h`, which the parser let through. */
export function durationSeconds(duration: string): number {
  return Number.parseInt(duration) * (SECONDS[duration.slice(-1)] ?? 1);
}

function checkTogether({ action, guestCommand }: Arguments): void {
  if (action.command === "cleanup" && action.all && action.machine !== undefined) {
    throw new UsageError({
      what: "The command cleanup takes --machine or --all, not both",
      advice: `See ${PROGRAM} cleanup --help`,
    });
  }
  if (action.command === "warm" && action.drop && action.templates.length === 0) {
    throw new UsageError({
      what: "The command warm --drop needs the templates whose warm images to remove",
      advice: `See what there is: ${PROGRAM} list`,
    });
  }
  if (action.command === "ssh") return;
  if (action.command !== "run") {
    if (guestCommand === null) return;
    throw new UsageError({
      what: `The command "${action.command}" takes nothing behind --`,
      advice: `See ${PROGRAM} ${action.command} --help`,
    });
  }
  if ((action.path === undefined) === (guestCommand !== null && guestCommand.length > 0)) return;
  throw new UsageError({
    what: action.path === undefined
      ? "The command run needs a script, or a command behind --"
      : `The command run takes a script or a command, not both: "${action.path}" and --`,
    advice:
      `Say ${PROGRAM} run --script PATH, or ${PROGRAM} run --machine NAME -- COMMAND [ARG...]`,
  });
}
