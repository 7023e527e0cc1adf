// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../../errors.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Context } from "../context.ts";
import { machinesIn } from "../inventory.ts";
import { inWords, LONGEST_PAUSE_MS } from "./admission.ts";
import { jobsAhead } from "./host_load.ts";
import { enterProject, entriesBefore } from "./queue.ts";
import { removeOneUnneeded } from "../unneeded.ts";
import { hasProjectLimit } from "../../policy/decide.ts";
import type { Rule } from "../../settings/settings.ts";
import { NotYet, waitFor } from "../../wait.ts";

/** The project of a job, and the rule that holds for the job. */
export interface Project {
  readonly path: string;
  readonly rule: Rule | null;
}

/**
 * Waits until fewer machines of the project are ahead of this one than the job's rule allows. It enters
 * the host's queue only after that, so it holds up no other project. Resolves to the seconds that it has
 * waited. Throws SystemFailure at the timeout.
 */
export async function waitForProject(
  machine: string,
  { pool, project }: { readonly pool: StoragePool; readonly project: Project | null },
  context: Context,
): Promise<number> {
  const { host: { config }, report: { log, progress }, signal } = context;
  if (!hasProjectLimit(config) || project === null) return 0;
  const { path, rule } = project;
  // Even without a limit for this job: its machine counts for the project's other jobs.
  const entered = await enterProject(pool, machine, { project: path, signal });
  if (rule === null || rule.maxMachines === null) return 0;
  const most = rule.maxMachines;
  const start = performance.now();
  let told = "";
  let seen: readonly string[] | null = entered.volumes;
  const probe = async (): Promise<number | NotYet> => {
    const volumes = seen ?? await pool.volumeNames();
    seen = null;
    const before = entriesBefore(entered.entry, volumes);
    if (before === null) throw removed(machine);
    if (before.length < most) return told === "" ? 0 : (performance.now() - start) / 1000;
    const one = before[Math.floor(Math.random() * before.length)]?.machine; // it looks often
    const found = machinesIn(pool.name, volumes).filter(({ name }) => name === one);
    await removeOneUnneeded(found, context);
    const what = "a machine of its project to end";
    const ahead = jobsAhead(before.length - most);
    const reason = inWords({ what, ahead, figures: `${most} of ${most} run` });
    if (told !== reason) log(`Waiting for ${reason}`);
    told = reason;
    return new NotYet(`it waits for ${reason}`);
  };
  return await waitFor({
    goal: "leave the queue",
    awaited: "a machine of its project to end",
    probe,
    advice:
      `List what runs: libvirt-gci list; ask the administrator to raise "max_machines" of ${rule.name}, ` +
      'which limits the machines of a project, or "host.queue_seconds"',
    fault: "room",
  }, {
    timeoutSeconds: config.host.queueSeconds,
    signal,
    log,
    progress,
    longestPauseMs: LONGEST_PAUSE_MS,
  });
}

function removed(machine: string): SystemFailure {
  return new SystemFailure({
    what: `The machine "${machine}" was removed while it waited for others of its project`,
    advice: "Retry the job",
    fault: "room",
  });
}
