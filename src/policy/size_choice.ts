// SPDX-License-Identifier: GPL-2.0-or-later
import { BuildFailure } from "../errors.ts";
import type { SizeRequests } from "../job/job.ts";
import { quoted } from "../quoted.ts";
import type { Config, MachineSettings, Rule } from "../settings/settings.ts";

/** The size that a job gets of something, and its limit. */
export interface Size<Value> {
  readonly value: Value;
  /** Who set the value. */
  readonly from: string;
  /** The largest possible value; null if only the template's own disk limits it. */
  readonly cap: Value;
  /** Who set the cap. */
  readonly capFrom: string;
}

/** The sizes of a job's machine, and how long it is kept. */
export interface Sizes {
  readonly vcpus: Size<number>;
  readonly memoryMib: Size<number>;
  /** null is the template's own. */
  readonly diskGib: Size<number | null>;
  readonly keepMinutes: Size<number>;
  readonly nested: Size<boolean>;
  /** The largest disk, however large the template is; null is no limit. */
  readonly maxDiskGib: number | null;
}

export interface SizeContext {
  readonly config: Config;
  readonly template: string;
  readonly rule: Rule | null;
  readonly requests: SizeRequests;
}

/** The keys of the settings as the file spells them, and the smallest valid sizes. */
const KINDS = {
  vcpus: { key: "vcpus", variable: "LIBVIRT_GCI_VCPUS", min: 1 },
  memoryMib: { key: "memory_mib", variable: "LIBVIRT_GCI_MEMORY_MIB", min: 64 },
  diskGib: { key: "disk_gib", variable: "LIBVIRT_GCI_DISK_GIB", min: 1 },
  keepMinutes: { key: "keep_minutes", variable: "LIBVIRT_GCI_KEEP_MINUTES", min: 0 },
} as const;
type Kind = typeof KINDS[keyof typeof KINDS];

const NESTED = "LIBVIRT_GCI_NESTED";
const SETTINGS = "this host's settings";

/**
 * Gives the sizes that the job asks for, or else those of the settings, within the limits. Throws
 * BuildFailure.
 */
export function chooseSizes(context: SizeContext): Sizes {
  return {
    vcpus: chooseSize("vcpus", context),
    memoryMib: chooseSize("memoryMib", context),
    diskGib: chooseSize("diskGib", context),
    keepMinutes: chooseSize("keepMinutes", context),
    nested: chooseNested(context),
    maxDiskGib: capOf("diskGib", context)?.cap ?? null,
  };
}

function chooseSize<Field extends keyof typeof KINDS>(
  field: Field,
  context: SizeContext,
): Size<number | MachineSettings[Field]> {
  const kind = KINDS[field];
  const request = context.requests[field];
  const usual = settingsFor(context)[field];
  const value = request === null ? usual : wholeNumber(request, kind);
  const from = request === null ? whoseSetting(kind.key, context) : kind.variable;
  const { cap, capFrom }: Pick<Size<number | MachineSettings[Field]>, "cap" | "capFrom"> =
    capOf(field, context) ??
      { cap: usual, capFrom: `${SETTINGS}, which have no "limits.${kind.key}"` };
  if (value !== null && (cap === null || value > cap)) {
    // A limit on what happens after the job is no reason to refuse a job that asks for nothing.
    if (field === "keepMinutes" && request === null) {
      return { value: cap, from: capFrom, cap, capFrom };
    }
    throw tooMuch(context.template, kind, { value, from, cap, capFrom });
  }
  return { value, from, cap, capFrom };
}

/** The smaller of two limits: the template's own, and the rule's or else that of all settings. */
function capOf(
  size: keyof typeof KINDS,
  { config, template, rule }: SizeContext,
): { readonly cap: number; readonly capFrom: string } | null {
  const entry = config.templates.get(template);
  const isOwn = entry?.ownKeys.has(`limits.${KINDS[size].key}`);
  const own = isOwn ? entry?.machine.limits[size] ?? null : null;
  const common = rule?.limits[size] ?? config.machine.limits[size];
  if (own !== null && own < (common ?? Infinity)) {
    return { cap: own, capFrom: `the template ${quoted(template)}` };
  }
  if (common === null) return null;
  return {
    cap: common,
    capFrom: rule !== null && rule.limits[size] !== null ? rule.name : SETTINGS,
  };
}

function chooseNested(context: SizeContext): Size<boolean> {
  const { config, template, rule, requests: { nested: request } } = context;
  const isForbiddenByRule = rule?.limits.nested === false;
  const usual = settingsFor(context).nested && !isForbiddenByRule;
  const entry = config.templates.get(template);
  const isForbiddenByTemplate = entry?.ownKeys.has("limits.nested") &&
    !entry.machine.limits.nested;
  const isAllowed = !isForbiddenByTemplate && (rule?.limits.nested ?? config.machine.limits.nested);
  const capFrom = isForbiddenByTemplate
    ? `the template ${quoted(template)}`
    : rule !== null && rule.limits.nested !== null
    ? rule.name
    : SETTINGS;
  if (request !== null && request !== "true" && request !== "false") {
    throw new BuildFailure({
      what: `The job asks for ${NESTED}=${quoted(request)}, which is neither true nor false`,
      advice: `Set the variable ${NESTED} to true or to false`,
    });
  }
  if (request === "true" && !usual && !isAllowed) {
    throw new BuildFailure({
      what: `The job asks for ${NESTED}=true, but "limits.nested" of ${capFrom} is false`,
      advice: `Omit the variable ${NESTED}, or ask the administrator to set "limits.nested"`,
    });
  }
  return {
    value: request === null ? usual : request === "true",
    from: request !== null
      ? NESTED
      : isForbiddenByRule
      ? rule.name
      : whoseSetting("nested", context),
    cap: usual || isAllowed,
    capFrom,
  };
}

function settingsFor({ config, template }: SizeContext): MachineSettings {
  return config.templates.get(template)?.machine ?? config.machine;
}

function whoseSetting(key: string, { config, template }: SizeContext): string {
  const isOwn = config.templates.get(template)?.ownKeys.has(key);
  return isOwn ? `the template ${quoted(template)}` : SETTINGS;
}

function wholeNumber(request: string, { variable, min }: Kind): number {
  const number = /^(0|[1-9]\d{0,7})$/.test(request) ? Number(request) : NaN;
  if (number >= min) return number;
  throw new BuildFailure({
    what: `The job asks for ${variable}=${
      quoted(request)
    }, which is not a whole number of at least ${min}`,
    advice: `Set the variable ${variable} to digits only, such as ${min * 4 || 60}`,
  });
}

function tooMuch(
  template: string,
  { key, variable }: Kind,
  { value, from, cap, capFrom }: Size<number | null>,
): BuildFailure {
  const asked = from === variable
    ? `The job asks for ${variable}=${value}`
    : `A machine of the template ${quoted(template)} has ${key}: ${value}`;
  if (cap === null) {
    return new BuildFailure({
      what: `${asked}, but ${capFrom}, allow no other disk than the template's own`,
      advice: `Omit the variable ${variable}, or ask the administrator to set "limits.${key}"`,
    });
  }
  return new BuildFailure({
    what: `${asked}, but at most ${cap} is allowed by ${capFrom}`,
    advice: `Set the variable ${variable} to ${cap} or less, or ask the administrator to raise ` +
      `"limits.${key}"`,
  });
}
