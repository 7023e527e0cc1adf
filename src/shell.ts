// SPDX-License-Identifier: GPL-2.0-or-later

/** A command for a shell, with quotes around only the words that need them. */
export function command(...words: readonly string[]): string {
  return words.map((word) => /^[\w@%+=:,./-]+$/.test(word) ? word : quote(word)).join(" ");
}

/** An argument for sh: single quotes keep everything but themselves (POSIX, 2.2.2). */
export function quote(argument: string): string {
  return `'${argument.replaceAll("'", `'\\''`)}'`;
}

/** A script for sh that becomes this command: each argument arrives as it is. */
export function execScript(command: readonly string[]): string {
  return `exec ${command.map(quote).join(" ")}\n`;
}

/** A command of virsh for this hypervisor: the default of a user other than root is another one. */
export function virsh({ uri }: { readonly uri: string }, ...words: readonly string[]): string {
  return command("virsh", "-c", uri, ...words);
}

/** The directory of a new storage pool: AppArmor lets libvirt read templates below it. */
export function poolPath(name: string): string {
  return `/var/lib/libvirt/images/${name}`;
}

/** The command that restarts those of the daemons that run: starting another would end them. */
export function restartDaemons(...daemons: readonly string[]): string {
  return command("systemctl", "try-restart", ...daemons.map((daemon) => `${daemon}.service*`));
}

/** The commands that make and start a storage pool of files. */
export function makePool(of: { readonly uri: string }, name: string): string {
  return [
    virsh(of, "pool-define-as", name, "dir", "--target", poolPath(name)),
    ...["pool-build", "pool-start", "pool-autostart"].map((verb) => virsh(of, verb, name)),
  ].join(" && ");
}
