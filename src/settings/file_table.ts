// SPDX-License-Identifier: GPL-2.0-or-later
import { HOST } from "./host_table.ts";
import { FLAG, isKeys, listOf, NAME, PATTERNS, text, whole } from "./kinds.ts";
import { MACHINE, RULE_LIMITS } from "./machine_table.ts";
import { setting } from "./setting.ts";

export const TEMPLATE_ONLY = {
  volume: setting(NAME, null, "The template's volume in the pool of templates.", {
    unset: "the template's name, with or without `.qcow2`",
  }),
  aliases: setting(
    listOf(text(/^[^\p{C}]+$/u, "a name"), "a list of names"),
    [],
    "Other names by which jobs may ask for the template. No two templates may share one.",
  ),
};

export const TEMPLATE = { ...TEMPLATE_ONLY, ...MACHINE };

/** The settings of one rule. What it does not set is as without it. */
export const RULE = {
  projects: setting(
    listOf(
      text(/^[^\p{C}]+$/u, "a name or a pattern, such as debian-*"),
      "a list with a project or a pattern in it",
      { min: 1 },
    ),
    null,
    "Full paths of the projects that the rule is for. `*` stands for any characters.",
    { unset: "all projects" },
  ),
  protected: setting(
    FLAG,
    null,
    "`true` is for jobs of protected branches and tags, `false` for all others.",
    { unset: "both" },
  ),
  templates: setting(
    PATTERNS,
    null,
    "The only templates that the job may use, of those that all jobs may.",
    { unset: "all of those" },
  ),
  max_machines: setting(
    whole(1, 10_000),
    null,
    "How many machines each project that the rule is for may have at once. All of a project's " +
      "machines count, also those of another rule or that are kept.",
    { unset: "no limit" },
  ),
  limits: RULE_LIMITS,
};

export const FILE = {
  ...HOST,
  ...MACHINE,
  templates: setting(
    { words: "the names of templates, each with settings below it", accepts: isKeys },
    {},
    "Settings of single templates, by their names. A template needs no entry; what its entry " +
      "does not set is as for all machines.",
  ),
  rules: setting(
    { words: "a list of rules", accepts: (value): value is unknown[] => Array.isArray(value) },
    [],
    "What jobs of single projects may ask for. The first rule that fits a job counts, and no " +
      "other. `libvirt-gci explain` tells which one that is.",
  ),
};
