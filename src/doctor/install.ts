// SPDX-License-Identifier: GPL-2.0-or-later
import type { DoctorContext } from "./check.ts";
import { readHostFile } from "./host_files.ts";

/** Packages by the family of distributions. */
export interface Packages {
  readonly debian: string;
  readonly fedora: string;
  readonly arch: string;
}

/** The command that installs these packages on this host. */
export async function install(
  context: Pick<DoctorContext, "root">,
  { debian, fedora, arch }: Packages,
): Promise<string> {
  const release = await readHostFile(context, "/etc/os-release") ?? "";
  const ids = [...release.matchAll(/^ID(?:_LIKE)?="?([^"\n]*)"?$/gm)].map(([, id]) => id);
  if (/fedora|rhel|centos/.test(ids.join(" "))) return `dnf install ${fedora}`;
  return /\barch/.test(ids.join(" ")) ? `pacman -S ${arch}` : `apt-get install ${debian}`;
}
