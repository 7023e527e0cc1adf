// SPDX-License-Identifier: GPL-2.0-or-later
import { distroOption, machineOption, option } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { jobFromEnv } from "../job/job.ts";

export const command = defineCommand("prepare", {
  description: "Start a machine for the job and wait until it accepts logins.",
  footer: "By hand, without `--machine`, the machine gets a generated name, which is printed.",
  fields: {
    distro: distroOption,
    machine: machineOption,
    keyFile: option(
      "--ssh-key-file",
      "PATH",
      "The private key to log in with, instead of the one in the settings.",
    ),
  },
  countedAs: () => "prepare",
  refills: true,
  run: async (options, { env, onHost, printer, startMaster }) => {
    const job = await jobFromEnv(env, options);
    const load = () => import("../machine/prepare_machine.ts"); // most of the program
    await onHost(async (context) => {
      const { prepare } = await load();
      const { name, metadata } = await prepare(job, { ...options, startMaster }, context);
      if (!job.byHand) return;
      const { stepsByHand } = await import("../machine/next_steps.ts");
      stepsByHand(name, metadata).forEach((line) => printer.print(line));
    }, { load });
  },
});
