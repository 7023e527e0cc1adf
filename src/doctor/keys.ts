// SPDX-License-Identifier: GPL-2.0-or-later
import { allMachines, type DoctorContext } from "./check.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";
import { reasonOf } from "../errors.ts";
import { readKey } from "../guest/key.ts";
import { command } from "../shell.ts";

export const group = { name: "SSH keys", checks: [checkKeys] };

/** The private keys for templates that already have the public keys. */
export async function checkKeys(context: DoctorContext): Promise<Finding[]> {
  const machines = allMachines(context.config).filter(({ ssh: { login } }) => login === "template");
  const files = new Set(machines.map(({ ssh: { key } }) => key));
  return await Promise.all(Array.from(files, (file) => checkKey(file, context)));
}

async function checkKey(file: string | null, { root, home = "" }: DoctorContext): Promise<Finding> {
  try {
    const place = file === null || file.startsWith("~/") ? file : root + file;
    const key = await readKey(place, root + home);
    const { mode } = await Deno.stat(key.file);
    if (((mode ?? 0) & 0o077) === 0) return ok(`The SSH key ${key.file} is usable`);
    return warning(`Other users can read the SSH key ${key.file}`, {
      meaning: "They could log in to machines",
      remedy: command("chmod", "600", key.file),
    });
  } catch (error) {
    const subject = file === null
      ? 'No SSH key for "ssh.login: template"'
      : `Cannot use the SSH key ${file}`;
    return problem(subject, {
      meaning: `${reasonOf(error)}\nJobs cannot start if their template has "ssh.login: template"`,
      remedy: remedyOf(error, file ?? "~/.ssh/id_ed25519"),
    });
  }
}

/** A new key has to get into the template too; the old one only needs to lose its passphrase. */
function remedyOf(error: unknown, file: string): string | null {
  if (!(error instanceof Error)) return null;
  const path = file.startsWith("~/") ? file : command(file); // the shell expands ~ only without quotes
  if (/passphrase/.test(error.message)) return `ssh-keygen -p -N "" -f ${path}`;
  const isMissing = error.cause instanceof Deno.errors.NotFound || /no SSH key/.test(error.message);
  return isMissing ? `ssh-keygen -t ed25519 -N "" -f ${path}` : null;
}
