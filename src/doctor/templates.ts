// SPDX-License-Identifier: GPL-2.0-or-later
import type { Config } from "../settings/load.ts";
import { BuildFailure } from "../errors.ts";
import { mayExist } from "../files.ts";
import type { MachineSettings } from "../settings/machine_settings.ts";
import { chooseTemplate, namedTemplates } from "../policy/template_choice.ts";
import { command, virsh } from "../shell.ts";
import { type DoctorContext, type HostDomain, isLocal } from "./check.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";
import { statIfAllowed } from "./host_files.ts";
import { chainOf, readTemplateHost, type TemplateHost, type VolumeFacts } from "./template_host.ts";

const GIB = 1024 ** 3;

/** The templates that the settings name, and all others in the pool. */
export async function checkTemplates(context: DoctorContext): Promise<Finding[]> {
  const host = await readTemplateHost(context);
  if (host === null) return []; // checkTemplatePool() says so
  const volumes = [...host.volumes.values()];
  const findings = await Promise.all(volumes.map((volume) => checkTemplate(volume, host, context)));
  return [
    ...volumes.length > 0 ? [] : [noTemplate(context.config.templatePool)],
    ...findings.flat(),
    ...missingTemplates(volumes, context),
  ];
}

function noTemplate(pool: string): Finding {
  return problem(`The storage pool "${pool}" has no template`, {
    meaning: "Every job fails",
    remedy: "make_base_image/make_base_image.sh VM",
  });
}

/** Those that the settings promise. prepare looks for them anew before it gives up. */
function missingTemplates(volumes: readonly VolumeFacts[], context: DoctorContext): Finding[] {
  const { config } = context;
  const missing = namedTemplates(config).filter((choice) =>
    !volumes.some(({ name }) => choice.volumes.includes(name))
  );
  return missing.map((choice) =>
    problem(`The settings name the template "${choice.name}", and it is not there`, {
      meaning: `A job that asks for it fails: there is no volume ` +
        choice.volumes.map((name) => `"${name}"`).join(" or "),
      remedy: virsh(context.config, "pool-refresh", config.templatePool) + " && " +
        virsh(context.config, "vol-list", config.templatePool),
    })
  );
}

async function checkTemplate(
  volume: VolumeFacts,
  host: TemplateHost,
  context: DoctorContext,
): Promise<Finding[]> {
  const { name, path, format, capacity } = volume;
  const chain = chainOf(volume, host);
  const overlays = host.overlays.get(path) ?? [];
  const findings = [
    ...checkFormat(volume),
    ...await checkChain(chain, volume, context),
    ...chain.flatMap((file) => host.writers.get(file) ?? []).map((domain) =>
      writerProblem(domain, { volume, machines: overlays.length }, context)
    ),
    ...await checkChanged(chain, { volume, overlays }, context),
    ...checkSize(volume, settingsOf(name, context), context.config),
  ];
  if (findings.length > 0) return findings;
  const users = overlays.length === 1 ? "1 machine stands" : `${overlays.length} machines stand`;
  return [
    ok(`The template "${name}": ${format}, ${Math.ceil(capacity / GIB)} GiB; ${users} on it`),
  ];
}

function checkFormat({ name, path, format }: VolumeFacts): Finding[] {
  if (format === "qcow2" || format === "raw") return [];
  return [
    warning(`The template "${name}" has the format ${format}`, {
      meaning: "Machines need one that is qcow2 or raw: a job that asks for it fails",
      remedy: command("qemu-img", "convert", "-O", "qcow2", path, `${path}.qcow2`),
    }),
  ];
}

async function checkChain(
  [, ...below]: readonly string[],
  { name }: VolumeFacts,
  context: DoctorContext,
): Promise<Finding[]> {
  if (!isLocal(context)) return [];
  const there = await Promise.all(below.map((file) => mayExist(context.root + file)));
  return below.filter((_, i) => !there[i]).map((file) =>
    problem(`The template "${name}" stands on ${file}, which is not there`, {
      meaning: "A machine on it does not start",
    })
  );
}

function writerProblem(
  { name: domain, isActive }: HostDomain,
  { volume, machines }: { readonly volume: VolumeFacts; readonly machines: number },
  context: DoctorContext,
): Finding {
  const what = machines === 0
    ? "corrupts each machine that is made from it"
    : `corrupts the ${machines} that stand${machines === 1 ? "s" : ""} on it`;
  return problem(
    `The template "${volume.name}" is the disk of the domain "${domain}"` +
      (isActive ? ", which runs" : ""),
    {
      meaning: isActive
        ? `What it writes ${what}. Shut it down, and give it a disk of its own`
        : `Starting it ${what}. Give it a disk of its own`,
      remedy: virsh(context.config, isActive ? "shutdown" : "edit", domain),
    },
  );
}

/**
 * Whether somebody wrote to a file after machines' disks were made on it. A new version in the place
 * of the old file, which these have open, is not that: it is younger than they are.
 */
async function checkChanged(
  chain: readonly string[],
  { volume, overlays }: { readonly volume: VolumeFacts; readonly overlays: readonly string[] },
  context: DoctorContext,
): Promise<Finding[]> {
  if (!isLocal(context)) return [];
  const timesOf = async (
    path: string,
  ): Promise<{ path: string; born: number; written: number }> => {
    const info = await statIfAllowed(context, path);
    return { path, born: Number(info?.birthtime ?? NaN), written: Number(info?.mtime ?? NaN) };
  };
  const disks = await Promise.all(overlays.map(timesOf));
  const files = await Promise.all(chain.map(timesOf));
  return files.flatMap((file) => {
    const harmed = disks.filter(({ born }) => file.born < born && born < file.written).length;
    if (harmed === 0) return [];
    return [
      warning(`Somebody wrote to the template "${volume.name}" while machines stand on it`, {
        meaning:
          `${file.path} is newer than the disks of ${harmed} of them, which may be damaged. ` +
          "Run their jobs again, and change a template by make_base_image.sh --replace only",
      }),
    ];
  });
}

/** The smaller of two bounds holds; a rule may have another than all settings. */
function checkSize(
  { name, capacity }: VolumeFacts,
  settings: MachineSettings | null,
  { machine, rules }: Config,
): Finding[] {
  if (settings === null) return [];
  const gib = Math.ceil(capacity / GIB);
  const most = Math.min(settings.maxDiskGib ?? Infinity, machine.maxDiskGib ?? Infinity);
  if (gib <= most) return [];
  const has = rules.some(({ maxDiskGib }) => (maxDiskGib ?? 0) >= gib) ? warning : problem;
  return [
    has(`The template "${name}" has ${gib} GiB, and max_disk_gib is ${most}`, {
      meaning:
        "A job that asks for it fails, unless a rule allows more. Raise max_disk_gib, or make " +
        "the template smaller",
    }),
  ];
}

/** The settings for machines on this volume; null if no job can ask for it. */
function settingsOf(volume: string, { config }: DoctorContext): MachineSettings | null {
  const entry = [...config.templates.values()].find((template) => template.volume === volume);
  if (entry !== undefined) return entry.machine;
  try {
    return chooseTemplate(config, volume, { isOperator: true }).settings;
  } catch (error) {
    if (error instanceof BuildFailure) return null;
    throw error;
  }
}
