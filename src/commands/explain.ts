// SPDX-License-Identifier: GPL-2.0-or-later
import { distroOption, jsonFlag, option, switchFlag } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { toTable } from "../cli/table.ts";
import { BuildFailure, explain } from "../errors.ts";
import { type Env, type Job, jobFromEnv } from "../job/job.ts";
import { withVariablesOf } from "../job/variables_file.ts";
import { decide, type Decision, findRule, type RuleSearch } from "../policy/decide.ts";
import type { Size } from "../policy/size_choice.ts";
import { addedName } from "../policy/template_choice.ts";
import { quoted, toVisible } from "../quoted.ts";
import type { Config } from "../settings/settings.ts";

export const command = defineCommand("explain", {
  description: "Show the machine that a job would get, and why, without connecting to libvirt.",
  footer:
    "By hand, the job's variables in the environment have the prefix CUSTOM_ENV_, as for the stages. In `--variables` they need no prefix.",
  fields: {
    distro: distroOption,
    project: option(
      "--project",
      "PATH",
      "The full path of the job's project, as GitLab would report it.",
    ),
    protected: switchFlag("--protected", "Treat the job's branch or tag as protected."),
    variables: option(
      "--variables",
      "FILE",
      "A file with the job's variables, one KEY=VALUE per line.",
    ),
    json: jsonFlag,
  },
  run: async (options, { env, settings, printer }) => {
    const config = await settings();
    const { text, refusal } = explainJob(await jobToExplain(options, env), config, options);
    printer.print(text);
    if (refusal !== null) throw refusal;
  },
});

/** The job as the command line describes it. By hand, this replaces GitLab's data. */
interface ExplainOptions {
  readonly distro?: string | undefined;
  readonly project?: string | undefined;
  readonly protected: boolean;
  readonly variables?: string | undefined;
}

interface Explanation {
  readonly text: string;
  readonly refusal: BuildFailure | null;
}

/** The job to explain. In a named project, it is not protected unless stated. Throws UsageError. */
export async function jobToExplain(options: ExplainOptions, env: Env): Promise<Job> {
  const { distro, project, variables } = options;
  const jobEnv = variables === undefined ? env : await withVariablesOf(variables, env);
  const isProtected = options.protected || undefined;
  const job = await jobFromEnv(jobEnv, { distro, project, isProtected });
  return project === undefined ? job : { ...job, isProtected: job.isProtected ?? false };
}

/** Explains what prepare would give the job, without asking libvirt. Throws SystemFailure. */
export function explainJob(job: Job, config: Config, { json }: { json: boolean }): Explanation {
  const search = findRule(job, config);
  try {
    const decision = decide(job, config);
    const text = json
      ? toJson({ ...jsonOfRules(search, job), ...jsonOf(decision, config) })
      : toTable([...rowsOf(decision, { job, config }), ...rowsOfRules(search)]);
    return { text, refusal: null };
  } catch (refusal) {
    if (!(refusal instanceof BuildFailure)) throw refusal;
    const text = json
      ? toJson({ ...jsonOfRules(search, job), refusal: explain(refusal) })
      : toTable(rowsOfRules(search));
    return { text, refusal };
  }
}

function rowsOf(
  { choice, settings, sizes, rule }: Decision,
  { job, config }: { readonly job: Job; readonly config: Config },
): [string, string][] {
  const asker = job.isTemplateFromOperator ? "--distro" : "the job";
  const volumes = choice.volumes.map(quoted).join(" or ");
  const added = [...new Set(choice.volumes.map(addedName))].map(quoted).join(" or ");
  return [
    [
      "template",
      `${quoted(choice.name)}, ` +
      (job.template === null
        ? "the default, because the job names none"
        : `which ${asker} calls ${quoted(job.template)}`),
    ],
    [
      "volume",
      `${added} as template add added it, else ${volumes}, ` +
      `in the storage pool ${quoted(config.pools.templates)}`,
    ],
    ["vcpus", words(sizes.vcpus)],
    ["memory", words(sizes.memoryMib, " MiB")],
    ["disk", words(sizes.diskGib, " GiB")],
    ["kept", `after a failure: ${words(sizes.keepMinutes, " min")}`],
    [
      "nested",
      `${yesOrNo(sizes.nested.value)}, from ${sizes.nested.from}; ` +
      `${sizes.nested.cap ? "allowed" : "not allowed"} by ${sizes.nested.capFrom}`,
    ],
    ["start", startOf(settings)],
    ["login", `${settings.ssh.login}, as the user ${quoted(settings.ssh.user)}`],
    ["network", quoted(settings.network.name)],
    ["isolated", isolation(settings)],
    ...machinesRow(rule),
  ];
}

function machinesRow(rule: Decision["rule"]): [string, string][] {
  if (rule === null || rule.maxMachines === null) return [];
  return [["machines", `at most ${rule.maxMachines} for each project at once, from ${rule.name}`]];
}

function rowsOfRules({ rule, reasons }: RuleSearch): [string, string][] {
  const without = reasons.length === 0 ? "there are no rules" : "no rule applies";
  return [
    ["rule", rule?.name ?? `none: ${without}`],
    ...reasons.map((reason): [string, string] => ["", reason]),
  ];
}

function words({ value, from, cap, capFrom }: Size<number | null>, unit = ""): string {
  const size = value === null ? "the template's own size" : `${value}${unit}`;
  const most = cap === null ? "the same" : `${cap}${unit}`;
  return `${size}, from ${from}; at most ${most}, from ${capFrom}`;
}

function startOf({ start, standby, firmware }: Decision["settings"]): string {
  const waiting = standby === 0 ? "" : `, or one of ${standby} standby machines`;
  return `${start}${waiting}, with the firmware ${firmware}`;
}

function isolation({ network }: Decision["settings"]): string {
  const { isolate, hostPorts, blocked } = network;
  if (!isolate) return "no";
  const open = hostPorts.length === 0 ? "" : `, except for ${hostPorts.join(", ")} of the host`;
  const closed = blocked.length === 0 ? "" : `; also from ${blocked.join(", ")}`;
  return `yes${open}${closed}`;
}

function yesOrNo(is: boolean): string {
  return is ? "yes" : "no";
}

function jsonOfRules({ rule, reasons }: RuleSearch, { project, isProtected }: Job): object {
  return { project, protected: isProtected, rule: rule?.name ?? null, reasons };
}

function jsonOf({ choice, settings, sizes, rule }: Decision, config: Config): object {
  const { vcpus, memoryMib, diskGib, keepMinutes, nested } = sizes;
  return {
    template: choice.name,
    pools: { templates: config.pools.templates },
    volumes: choice.volumes,
    sizes: {
      vcpus: jsonOfSize(vcpus),
      memory_mib: jsonOfSize(memoryMib),
      disk_gib: jsonOfSize(diskGib),
    },
    keep_minutes: jsonOfSize(keepMinutes),
    nested: {
      value: nested.value,
      from: nested.from,
      allowed: nested.cap,
      allowed_by: nested.capFrom,
    },
    start: settings.start,
    standby: settings.standby,
    firmware: settings.firmware,
    ssh: { login: settings.ssh.login, user: settings.ssh.user },
    network: {
      name: settings.network.name,
      isolate: settings.network.isolate,
      host_ports: settings.network.hostPorts,
      blocked: settings.network.blocked,
    },
    max_machines_of_project: rule?.maxMachines ?? null,
  };
}

function jsonOfSize({ value, from, cap, capFrom }: Size<number | null>): object {
  return { value, from, max: cap, max_from: capFrom };
}

function toJson(value: object): string {
  return toVisible(JSON.stringify(value, null, 2));
}
