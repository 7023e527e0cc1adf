// SPDX-License-Identifier: GPL-2.0-or-later
import { command } from "../shell.ts";

/** What GitLab Runner calls this program with in each stage. */
export const STAGE_ARGS = {
  config: ["config"],
  prepare: ["prepare"],
  run: ["run", "--script"],
  cleanup: ["cleanup"],
} as const;

/**
 * The command that writes a whole section of config.toml whose runner calls this program. The address
 * of GitLab, the token and the name are for a person to replace.
 */
export function registerCommand(program: string): string {
  const start = "gitlab-runner register --non-interactive --url https://gitlab.com " +
    "--token TOKEN --name my-vm-host --executor custom";
  const stages = Object.entries(STAGE_ARGS).flatMap(([stage, args]) => {
    const words = args.flatMap((arg) => [`--custom-${stage}-args`, arg]);
    return [`--custom-${stage}-exec`, program].concat(words);
  });
  return `${start} ${command(...stages)}`;
}
