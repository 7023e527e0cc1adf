// SPDX-License-Identifier: GPL-2.0-or-later

/** A script for sh that runs this command: each argument arrives in the guest as it is. */
export function commandLine(command: readonly string[]): string {
  return `exec ${command.map(quote).join(" ")}\n`;
}

/**
 * An argument for sh. Single quotes keep everything but themselves (POSIX, Shell Command Language,
 * 2.2.2).
 */
export function quote(argument: string): string {
  return `'${argument.replaceAll("'", `'\\''`)}'`;
}
