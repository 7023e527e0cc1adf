// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import type { Job } from "../job/job.ts";
import { chooseSizes, type Sizes } from "./size_choice.ts";
import {
  chooseTemplate,
  fits,
  type TemplateAdvice,
  templateAdvice,
  type TemplateChoice,
} from "./template_choice.ts";
import { quoted } from "../quoted.ts";
import type { Config, MachineSettings, Rule } from "../settings/settings.ts";

/** What a job gets, and why. */
export interface Decision extends RuleSearch {
  /** The template; its settings have the sizes that the job gets. */
  readonly choice: TemplateChoice;
  /**
   * The settings of the choice. The template's disk must not be larger than their `limits.diskGib`
   * either.
   */
  readonly settings: MachineSettings;
  readonly sizes: Sizes;
  readonly advise: TemplateAdvice;
}

/** The rule that holds for a job, and the way to it. */
export interface RuleSearch {
  readonly rule: Rule | null;
  /** Why this rule holds: a sentence for each rule that was looked at. */
  readonly reasons: readonly string[];
}

/**
 * Decides what a job gets. Throws BuildFailure if it asks for too much, SystemFailure without its
 * project.
 */
export function decide(job: Job, config: Config): Decision {
  const { rule, reasons } = findRule(job, config);
  const asker = { isOperator: job.isTemplateFromOperator, byHand: job.byHand, rule };
  const choice = chooseTemplate(config, job.template, asker);
  const { requests } = job;
  const sizes = chooseSizes({ config, template: choice.name, rule, requests });
  const settings: MachineSettings = {
    ...choice.settings,
    vcpus: sizes.vcpus.value,
    memoryMib: sizes.memoryMib.value,
    diskGib: sizes.diskGib.value,
    keepMinutes: sizes.keepMinutes.value,
    nested: sizes.nested.value,
    limits: { ...choice.settings.limits, diskGib: sizes.maxDiskGib },
  };
  return {
    choice: { ...choice, settings },
    settings,
    rule,
    reasons,
    sizes,
    advise: templateAdvice(config, asker),
  };
}

/** Whether a rule bounds how many machines a project has at once. */
export function hasProjectLimit({ rules }: Config): boolean {
  return rules.some(({ maxMachines }) => maxMachines !== null);
}

/** The first rule that fits the job. Throws SystemFailure as {@linkcode decide} does. */
export function findRule(job: Job, { rules }: Config): RuleSearch {
  if (rules.length === 0) return { rule: null, reasons: [] };
  if (!job.byHand && job.project === null) {
    throw new SystemFailure({
      what: "Cannot tell which rule of the settings applies: the job's project is unknown",
      advice: "Use GitLab Runner 14.1 or newer, which reports it in JOB_RESPONSE_FILE",
    });
  }
  const reasons: string[] = [];
  for (const rule of rules) {
    const obstacle = whyNot(rule, job);
    if (obstacle === null) {
      reasons.push(`${rule.name} applies: ${whyItFits(rule, job)}`);
      return { rule, reasons };
    }
    reasons.push(`${rule.name} does not apply: ${obstacle}`);
  }
  return { rule: null, reasons };
}

function whyNot({ projects, protected: isProtected }: Rule, job: Job): string | null {
  if (projects !== null) {
    const { project } = job;
    if (project === null) return `it is for ${projects.join(", ")}, but the project is unknown`;
    if (!projects.some((pattern) => fits(pattern, project))) {
      return `it is for ${projects.join(", ")}, but the project is ${quoted(project)}`;
    }
  }
  if (isProtected === null || isProtected === job.isProtected) return null;
  return `it is for ${refs(isProtected)}, but the job's ref is ` +
    (job.isProtected === null ? "unknown" : job.isProtected ? "protected" : "not protected");
}

function whyItFits({ projects, protected: isProtected }: Rule, { project }: Job): string {
  const pattern = projects?.find((pattern) => fits(pattern, project ?? ""));
  const reasons = [
    ...(pattern === undefined ? [] : [`the project ${quoted(project ?? "")} matches ${pattern}`]),
    ...(isProtected === null ? [] : [`it is for ${refs(isProtected)}, and the job's ref is one`]),
  ];
  return reasons.join("; ") || "it is for every job";
}

function refs(isProtected: boolean): string {
  return isProtected ? "protected refs" : "refs that are not protected";
}
