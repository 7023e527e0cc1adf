// SPDX-License-Identifier: GPL-2.0-or-later
import { distroOption } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { unlessRefused } from "../errors.ts";
import { CALLER_VARIABLE, type Job, jobFromEnv, MACHINE_VARIABLE } from "../job/job.ts";
import { processMark } from "../machine/process.ts";
import { decide } from "../policy/decide.ts";
import type { Config } from "../settings/settings.ts";

export const command = defineCommand("config", {
  description: "Print the JSON that GitLab Runner expects from its config_exec.",
  fields: { distro: distroOption },
  run: async ({ distro }, { env, settings, version, printer }) => {
    const config = await settings();
    // This command finds out the machine's name.
    const job = await jobFromEnv({ ...env, [MACHINE_VARIABLE]: undefined }, { distro });
    printer.print(configJson(job, config, version));
  },
});

/**
 * The answer of a config_exec (https://docs.gitlab.com/runner/executors/custom/#config). It refuses
 * nothing: prepare does, since its messages get into the job's log.
 */
export function configJson(job: Job, config: Config, version: string): string {
  const { ssh: { user }, guest: { shell, buildsDir, cacheDir } } = unlessRefused(
    () => decide(job, config).settings,
    config.machine,
  );
  const home = user === "root" ? "/root" : `/home/${user}`;
  return JSON.stringify({
    driver: { name: "libvirt-gci", version: `v${version}` },
    builds_dir: buildsDir ?? `${home}/builds`,
    cache_dir: cacheDir ?? `${home}/cache`,
    builds_dir_is_shared: false,
    shell,
    ...(job.machine === null ? {} : { job_env: jobEnv(job.machine) }),
  });
}

function jobEnv(machine: string): Record<string, string> {
  const caller = processMark(Deno.ppid);
  return { [MACHINE_VARIABLE]: machine, ...(caller && { [CALLER_VARIABLE]: caller }) };
}
