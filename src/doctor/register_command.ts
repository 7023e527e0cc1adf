// SPDX-License-Identifier: GPL-2.0-or-later
import { command } from "../shell.ts";

/** The arguments of each stage in config.toml. */
export const STAGE_ARGS = {
  config: ["config"],
  prepare: ["prepare"],
  run: ["run", "--script"],
  cleanup: ["cleanup"],
} as const;

/** The command that adds this program to config.toml. URL, token and name are for you to replace. */
export function registerCommand(program: string): string {
  const start = "gitlab-runner register --non-interactive --url https://gitlab.com " +
    "--token TOKEN --name my-vm-host --executor custom";
  const stages = Object.entries(STAGE_ARGS).flatMap(([stage, args]) => {
    const words = args.flatMap((arg) => [`--custom-${stage}-args`, arg]);
    return [`--custom-${stage}-exec`, program].concat(words);
  });
  return `${start} ${command(...stages)}`;
}
