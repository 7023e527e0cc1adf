// SPDX-License-Identifier: GPL-2.0-or-later
import { GIB } from "../bytes.ts";
import { type DoctorContext, isLocal, type LibvirtContext, needsLibvirt } from "./check.ts";
import { type Finding, type Found, listFindings, ok, problem, warning } from "./finding.ts";
import { statIfAllowed } from "./host_files.ts";
import {
  chainOf,
  type HostDomain,
  readTemplateHost,
  type TemplateHost,
  type TemplateVolume,
} from "./template_host.ts";
import { checkWarmImages } from "./warm_check.ts";
import { unlessRefused } from "../errors.ts";
import { mayExist } from "../files.ts";
import { addedName, chooseTemplate, namedTemplates } from "../policy/template_choice.ts";
import type { Config, MachineSettings } from "../settings/settings.ts";
import { command, virsh } from "../shell.ts";

export const group = {
  name: "templates",
  checks: [needsLibvirt(checkTemplates), needsLibvirt(checkWarmImages)],
};

export async function checkTemplates(context: LibvirtContext): Promise<Found> {
  const host = await readTemplateHost(context);
  if (host === null) return null; // checkTemplatePool() says so
  const volumes = Array.from(host.volumes.values());
  return [
    volumes.length > 0 ? null : noTemplate(context.config.pools.templates),
    await Promise.all(volumes.map((volume) => checkTemplate(volume, host, context))),
    missingTemplates(volumes, context),
  ];
}

function noTemplate(pool: string): Finding {
  return problem(`The storage pool "${pool}" has no templates`, {
    meaning: "Every job fails",
    remedy: "libvirt-gci template add NAME IMAGE",
  });
}

/** Whether a job that asks for the volume of this name gets that volume. */
function isHeldBy(asked: string, { name, isAdded }: TemplateVolume): boolean {
  return asked === name || isAdded && addedName(asked) === name;
}

/** Templates that the settings name and the pool lacks. */
function missingTemplates(volumes: readonly TemplateVolume[], context: DoctorContext): Finding[] {
  const { config } = context;
  const missing = namedTemplates(config).filter((choice) =>
    !volumes.some((volume) => choice.volumes.some((name) => isHeldBy(name, volume)))
  );
  return missing.map((choice) =>
    problem(`The settings name the template "${choice.name}", which does not exist`, {
      meaning: `Jobs that ask for it fail: there is no volume ` +
        choice.volumes.map((name) => `"${name}"`).join(" or "),
      remedy: virsh(context.config.libvirt, "pool-refresh", config.pools.templates) + " && " +
        virsh(context.config.libvirt, "vol-list", config.pools.templates),
    })
  );
}

async function checkTemplate(
  volume: TemplateVolume,
  host: TemplateHost,
  context: DoctorContext,
): Promise<Finding[]> {
  const { name, path, format, capacityBytes } = volume;
  const chain = chainOf(volume, host);
  const overlays = host.overlays.get(path) ?? [];
  const writers = chain.flatMap((file) => host.writers.get(file) ?? []);
  const findings = listFindings([
    checkFormat(volume),
    await checkChain(chain, volume, context),
    writers.map((domain) => writerProblem(domain, volume, overlays.length, context)),
    await checkChanged(chain, volume, overlays, context),
    checkSize(volume, settingsOf(name, context), context.config),
  ]);
  if (findings.length > 0) return findings;
  const users = overlays.length === 1 ? "1 machine" : `${overlays.length} machines`;
  const size = Math.ceil(capacityBytes / GIB);
  return [ok(`The template "${name}": ${format}, ${size} GiB, used by ${users}`)];
}

function checkFormat({ name, path, format }: TemplateVolume): Finding | null {
  if (format === "qcow2" || format === "raw") return null;
  return warning(`The template "${name}" has the format ${format}`, {
    meaning: "Templates must be qcow2 or raw: jobs that ask for this one fail",
    remedy: command("qemu-img", "convert", "-O", "qcow2", path, `${path}.qcow2`),
  });
}

async function checkChain(
  [, ...below]: readonly string[],
  { name }: TemplateVolume,
  context: DoctorContext,
): Promise<Finding[]> {
  if (!isLocal(context)) return [];
  const there = await Promise.all(below.map((file) => mayExist(context.root + file)));
  return below.filter((_, i) => !there[i]).map((file) =>
    problem(`The template "${name}" is based on ${file}, which does not exist`, {
      meaning: "Machines of this template cannot start",
    })
  );
}

function writerProblem(
  { name: domain, isActive }: HostDomain,
  { name }: TemplateVolume,
  machines: number,
  context: DoctorContext,
): Finding {
  const what = machines === 0
    ? "corrupts every machine that is created from it"
    : `corrupts the ${machines} machine${machines === 1 ? "" : "s"} based on it`;
  const subject = `The template "${name}" is the disk of the domain "${domain}"`;
  return isActive
    ? problem(`${subject}, which is running`, {
      meaning: `Each write to it ${what}. Shut the domain down, and give it its own disk`,
      remedy: virsh(context.config.libvirt, "shutdown", domain),
    })
    : problem(subject, {
      meaning: `Starting the domain ${what}. Give it its own disk`,
      remedy: virsh(context.config.libvirt, "edit", domain),
    });
}

/** Whether a file was written to after disks were based on it. A replaced file is younger than those. */
async function checkChanged(
  chain: readonly string[],
  volume: TemplateVolume,
  overlays: readonly TemplateVolume[],
  context: DoctorContext,
): Promise<Finding[]> {
  if (!isLocal(context)) return [];
  const timesOf = async (path: string) => {
    const info = await statIfAllowed(context, path);
    return { path, born: Number(info?.birthtime ?? NaN), written: Number(info?.mtime ?? NaN) };
  };
  const disks = await Promise.all(overlays.map(({ path }) => timesOf(path)));
  const files = await Promise.all(chain.map(timesOf));
  const harmedBy = (file: typeof disks[number]): number =>
    disks.filter(({ born }) => file.born < born && born < file.written).length;
  return files.filter((file) => harmedBy(file) > 0).map((file) =>
    warning(`The template "${volume.name}" was modified while machines used it`, {
      meaning: `${file.path} is newer than the disks of ${harmedBy(file)} of them, which may be ` +
        "damaged. Retry their jobs, and replace templates only by libvirt-gci template add, or by " +
        "make_base_image.sh --replace",
    })
  );
}

/** The smaller of two limits holds. A rule may replace the one of all settings. */
function checkSize(
  { name, capacityBytes }: TemplateVolume,
  settings: MachineSettings | null,
  { machine, rules }: Config,
): Finding | null {
  if (settings === null) return null;
  const gib = Math.ceil(capacityBytes / GIB);
  const most = Math.min(settings.limits.diskGib ?? Infinity, machine.limits.diskGib ?? Infinity);
  if (gib <= most) return null;
  const has = rules.some(({ limits: { diskGib: maxDiskGib } }) => (maxDiskGib ?? 0) >= gib)
    ? warning
    : problem;
  return has(`The template "${name}" has ${gib} GiB, but "limits.disk_gib" is ${most}`, {
    meaning: 'Jobs that ask for it fail, unless a rule allows more. Raise "limits.disk_gib", or ' +
      "shrink the template",
  });
}

/** The settings for machines on this volume; null if no job can ask for it. */
function settingsOf(volume: string, { config }: DoctorContext): MachineSettings | null {
  const entry = [...config.templates.values()].find((template) => template.volume === volume);
  if (entry !== undefined) return entry.machine;
  return unlessRefused(() => chooseTemplate(config, volume, { isOperator: true }).settings, null);
}
