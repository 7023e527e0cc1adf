// SPDX-License-Identifier: GPL-2.0-or-later
import { HOST } from "./host_table.ts";
import { FLAG, isKeys, listOf, NAME, PATTERNS, text, whole } from "./kinds.ts";
import { MACHINE, RULE_LIMITS } from "./machine_table.ts";
import { setting } from "./setting.ts";

export const TEMPLATE_ONLY = {
  volume: setting(NAME, null, "The template's volume in the template pool.", {
    unset: "the template's name, with or without `.qcow2`",
  }),
  aliases: setting(
    listOf(text(/^[^\p{C}]+$/u, "a name"), "a list of names"),
    [],
    "Other names for the template, which jobs may use. Each must be unique.",
  ),
};

export const TEMPLATE = { ...TEMPLATE_ONLY, ...MACHINE };

/** The settings of one rule. Those that it leaves out stay as without it. */
export const RULE = {
  projects: setting(
    listOf(
      text(/^[^\p{C}]+$/u, "a name or a pattern, such as debian-*"),
      "a list of at least one project or pattern",
      { min: 1 },
    ),
    null,
    "The full paths of the rule's projects. `*` stands for any characters.",
    { unset: "all projects" },
  ),
  protected: setting(
    FLAG,
    null,
    "The refs that the rule is for: `true` for protected branches and tags, `false` for all others.",
    { unset: "both" },
  ),
  templates: setting(
    PATTERNS,
    null,
    "The templates that the job may use. A rule can only narrow `allowed_templates`.",
    { unset: "all allowed templates" },
  ),
  max_machines: setting(
    whole(1, 10_000),
    null,
    "How many machines each project of the rule may have at once. All machines of a project " +
      "count, including kept ones and those under other rules.",
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
    "Settings of single templates, by name. A template needs no entry. If its entry omits a " +
      "setting, that of all machines applies.",
  ),
  rules: setting(
    { words: "a list of rules", accepts: (value): value is unknown[] => Array.isArray(value) },
    [],
    "What jobs of single projects may ask for. Only the first rule that matches a job " +
      "applies. `libvirt-gci explain` shows which one.",
  ),
};
