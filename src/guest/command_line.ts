// SPDX-License-Identifier: GPL-2.0-or-later
import { quote } from "../shell.ts";

/** A script for sh that runs this command: each argument arrives in the guest as it is. */
export function commandLine(command: readonly string[]): string {
  return `exec ${command.map(quote).join(" ")}\n`;
}
