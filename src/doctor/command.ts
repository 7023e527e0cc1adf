// SPDX-License-Identifier: GPL-2.0-or-later
import type { DoctorContext } from "./context.ts";
import { readHostFile } from "./host_files.ts";

/** A command for a shell, in which only the words have quotes that need them. */
export function command(...words: readonly string[]): string {
  return words.map((word) =>
    /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`
  ).join(" ");
}

/** A command of virsh for the hypervisor of the settings: the default of a user is another. */
export function virsh(
  { config }: Pick<DoctorContext, "config">,
  ...words: readonly string[]
): string {
  return command("virsh", "-c", config.uri, ...words);
}

/** Packages by the family of distributions. */
export interface Packages {
  readonly debian: string;
  readonly fedora: string;
}

/** The command that installs these packages on this host. */
export async function install(
  context: Pick<DoctorContext, "root">,
  { debian, fedora }: Packages,
): Promise<string> {
  const release = await readHostFile(context, "/etc/os-release") ?? "";
  const ids = [...release.matchAll(/^ID(?:_LIKE)?="?([^"\n]*)"?$/gm)].map(([, id]) => id);
  return /fedora|rhel|centos/.test(ids.join(" "))
    ? `dnf install ${fedora}`
    : `apt-get install ${debian}`;
}
