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
  return command(
    ...["gitlab-runner", "register", "--non-interactive", "--url", "https://gitlab.com"],
    ...["--token", "TOKEN", "--name", "my-vm-host", "--executor", "custom"],
    ...Object.entries(STAGE_ARGS).flatMap(([stage, args]) => [
      ...[`--custom-${stage}-exec`, program],
      ...args.flatMap((arg) => [`--custom-${stage}-args`, arg]),
    ]),
  );
}
