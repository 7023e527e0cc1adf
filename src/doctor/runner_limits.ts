// SPDX-License-Identifier: GPL-2.0-or-later
import { allMachines, type DoctorContext } from "./check.ts";
import { type Finding, ok, warning } from "./finding.ts";
import { readHostFile } from "./host_files.ts";
import { EDIT, type Runner, type RunnerConfig } from "./runner_config.ts";

/** A machine is destroyed in a second; a daemon with much to do takes longer. */
const SHORTEST_CLEANUP_SECONDS = 30;
const SHORTEST_FORCE_SECONDS = 5;

export function checkTimeouts({ name, custom }: Runner, { config }: DoctorContext): Finding[] {
  const boot = Math.max(
    ...allMachines(config).map(({ timeouts }) => timeouts.addressSeconds + timeouts.sshSeconds),
  );
  const limits = [
    {
      key: "prepare_exec_timeout",
      least: config.host.queueSeconds + boot,
      meaning: "GitLab Runner kills a prepare that waits or boots for longer, even within " +
        `"host.queue_seconds", "timeouts.address_seconds" and "timeouts.ssh_seconds", and the job's ` +
        "log does not say why",
    },
    {
      key: "cleanup_exec_timeout",
      least: SHORTEST_CLEANUP_SECONDS,
      meaning: "A cleanup that is killed leaves its machine behind",
    },
    {
      key: "graceful_kill_timeout",
      least: SHORTEST_CLEANUP_SECONDS,
      meaning: "If a job is cancelled while its machine starts, prepare is killed before it has " +
        "removed what it created",
    },
    {
      key: "force_kill_timeout",
      least: SHORTEST_FORCE_SECONDS,
      meaning: "GitLab Runner stops waiting for a killed stage before the kernel has ended it",
    },
  ] as const;
  return limits.filter(({ key, least }) => custom[key] < least).map(({ key, least, meaning }) =>
    warning(`The ${key} of the runner "${name}" is only ${custom[key]} s`, {
      meaning,
      remedy: `${EDIT} # ${key} = ${least}, or more`,
    })
  );
}

export async function checkMemory(
  { concurrent, runners }: RunnerConfig,
  context: DoctorContext,
): Promise<Finding | null> {
  const sum = runners.reduce((sum, { limit }) => sum + (limit || Infinity), 0);
  const { maxMachines, overcommitMemory } = context.config.host;
  const jobs = Math.min(concurrent, sum);
  if (maxMachines !== null && maxMachines < jobs) {
    return warning(
      `Up to ${jobs} jobs can run at once, but "host.max_machines" is ${maxMachines}`,
      {
        meaning: "Surplus jobs wait in prepare, although another host could run them",
        remedy: `${EDIT} # concurrent = ${maxMachines}`,
      },
    );
  }
  const text = await readHostFile(context, "/proc/meminfo");
  const totalKib = /^MemTotal:\s+(\d+) kB$/m.exec(text ?? "")?.[1];
  if (totalKib === undefined) return null;
  const largest = Math.max(...allMachines(context.config).map(({ memoryMib }) => memoryMib));
  const totalMib = Math.floor(Number(totalKib) / 1024);
  const subject = `${jobs} machine${jobs === 1 ? "" : "s"} at once, of up to ` +
    `${largest} MiB, and the host has ${totalMib} MiB`;
  if (jobs * largest <= totalMib) return ok(subject);
  return warning(subject, {
    meaning: overcommitMemory
      ? "If all are busy, the host swaps, or the kernel kills machines and their jobs fail"
      : "If all are busy, surplus jobs wait in prepare for memory",
    remedy: `${EDIT} # concurrent = ${Math.max(1, Math.floor(totalMib / largest))}`,
  });
}
