// SPDX-License-Identifier: GPL-2.0-or-later
import type { Config, Rule, TemplateSettings } from "./config.ts";
import { TEMPLATE_NAME } from "./config_schema.ts";
import { BuildFailure } from "./errors.ts";
import type { MachineSettings } from "./machine_settings.ts";
import { quoted } from "./quoted.ts";

/** The template that a job gets, before anybody looked whether it exists. */
export interface TemplateChoice {
  readonly name: string;
  /** The volumes of the template pool that may hold it, the first that exists counts. */
  readonly volumes: readonly string[];
  readonly settings: MachineSettings;
  /** Whether the host's settings name it: then it is the host's fault if it is not there. */
  readonly isPromised: boolean;
}

/** Who asks for a template. */
export interface Asker {
  /** Whether it is the operator, whom no setting binds. */
  readonly isOperator?: boolean;
  /** The rule that holds for the job; null is none. */
  readonly rule?: Rule | null;
}

/** A template under the one name that settings and rules know it by. */
interface Found {
  readonly name: string;
  /** Its entry in the settings; null if they do not name it. */
  readonly entry: TemplateSettings | null;
}

const MOST_NAMES = 30;

/**
 * The template for a job that asks for this one, by its name or by an alias of the settings, or for
 * none (null). Throws BuildFailure if the word is no name, if there is no default, or if the
 * settings do not let the asker have it.
 */
export function chooseTemplate(
  config: Config,
  requested: string | null,
  asker: Asker = {},
): TemplateChoice {
  const word = requested ?? config.defaultTemplate;
  if (word === null) {
    throw new BuildFailure({
      fault: "template",
      what: "The job asks for no template, and this host has no default",
      advice: "Set the variable DISTRO, or image:, to the name of a template; " +
        "or have the host's settings name a default_template",
    });
  }
  const found = findTemplateName(config, word);
  if (found === null) throw noName(word);
  if (!mayHave(config, found, asker)) throw refusal(config, { requested, word }, asker);
  return {
    name: found.name,
    volumes: volumesOf(found),
    settings: found.entry?.machine ?? config.machine,
    isPromised: found.entry !== null || requested === null,
  };
}

/** The templates that the settings name, each once, with their settings. */
export function namedTemplates(config: Config): TemplateChoice[] {
  const { templates, defaultTemplate } = config;
  const names = new Set([...templates.keys(), ...defaultTemplate ? [defaultTemplate] : []]);
  const choices = [...names].map((name) => chooseTemplate(config, name, { isOperator: true }));
  const byName = new Map(choices.map((choice) => [choice.name, choice])); // the default by an alias
  return [...byName.values()];
}

/** The templates that the settings name and want resumed from RAM. */
export function templatesToResume(config: Config): TemplateChoice[] {
  return namedTemplates(config)
    .filter(({ settings }) => settings.start !== "cold" || settings.standby > 0);
}

/** The templates that the settings name, of which they want machines to wait for jobs. */
export function templatesToWait(config: Config): TemplateChoice[] {
  return namedTemplates(config).filter(({ settings }) => settings.standby > 0);
}

/** Whether who asks may have the template that goes by this name. It never throws. */
export function isTemplateAllowed(config: Config, name: string, asker: Asker): boolean {
  const found = findTemplateName(config, name);
  return found !== null && mayHave(config, found, asker);
}

/** Whether the text fits the pattern, in which `*` stands for any characters, in linear time. */
export function fits(pattern: string, text: string): boolean {
  const [start = "", ...parts] = pattern.split("*");
  const end = parts.pop();
  if (end === undefined) return text === start;
  if (!text.startsWith(start)) return false;
  let at = start.length;
  for (const part of parts) {
    const found = text.indexOf(part, at);
    if (found < 0) return false;
    at = found + part.length;
  }
  return text.endsWith(end) && text.length - end.length >= at;
}

/**
 * Each volume belongs to one name only, so that nobody gets round what the settings say of a
 * template by asking for its volume.
 */
function findTemplateName({ templates }: Config, word: string): Found | null {
  const named = [...templates].map(([name, entry]) => ({ name, entry }));
  const goesBy = (word: string): Found | undefined =>
    named.find(({ name, entry }) => name === word || entry.aliases.includes(word));
  const exact = goesBy(word);
  if (exact !== undefined) return exact;
  if (!TEMPLATE_NAME.test(word)) return null;
  const unnamed = { name: word.replace(/(\.qcow2)+$/, ""), entry: null };
  const volumes = volumesOf(unnamed);
  return goesBy(unnamed.name) ??
    named.find((found) => volumesOf(found).some((volume) => volumes.includes(volume))) ??
    unnamed;
}

function volumesOf({ name, entry }: Found): string[] {
  return entry === null || entry.volume === null ? [`${name}.qcow2`, name] : [entry.volume];
}

/** A rule narrows what the settings allow. */
function mayHave(config: Config, { name, entry }: Found, { isOperator, rule }: Asker): boolean {
  if (isOperator) return true;
  const ofRule = rule?.templates;
  if (ofRule && !ofRule.some((pattern) => fits(pattern, name))) return false;
  const { defaultTemplate, allowedTemplates } = config;
  return entry !== null ||
    allowedTemplates.some((pattern) => fits(pattern, name)) ||
    (defaultTemplate !== null && findTemplateName(config, defaultTemplate)?.name === name);
}

function noName(word: string): BuildFailure {
  return new BuildFailure({
    fault: "template",
    what: word === ""
      ? "The job asks for a template with an empty name"
      : `The job asks for the template ${quoted(word)}, which is no template's name`,
    advice: "Set the variable DISTRO, or image:, to the name of a template: letters, digits, " +
      "'.', '_', '+' and '-'",
  });
}

function refusal(
  config: Config,
  { requested, word }: { readonly requested: string | null; readonly word: string },
  { rule }: Asker,
): BuildFailure {
  const who = rule?.templates ? `${rule.name} of this host's settings` : "this host's settings";
  const allowed = allowedNames(config, rule ?? null);
  const shown = allowed.slice(0, MOST_NAMES).join(", ") +
    (allowed.length > MOST_NAMES ? ", …" : "");
  return new BuildFailure({
    what: requested === null
      ? `The job asks for no template, and the default, ${quoted(word)}, is not allowed by ${who}`
      : `The job asks for the template ${quoted(word)}, which is not allowed by ${who}`,
    advice: allowed.length === 0
      ? "Ask for another runner: this host has no template for this job"
      : `Ask for one that this job may have: ${shown}`,
  });
}

/** The names, then the patterns, of what a job may have. */
function allowedNames(config: Config, rule: Rule | null): string[] {
  const { defaultTemplate, allowedTemplates, templates } = config;
  const names = [...templates.keys(), ...(defaultTemplate === null ? [] : [defaultTemplate])]
    .filter((name) => isTemplateAllowed(config, name, { rule }))
    .map((name) => findTemplateName(config, name)?.name ?? name);
  const patterns = (rule?.templates ?? ["*"]).flatMap((ofRule) =>
    allowedTemplates.map((pattern) =>
      ofRule === "*" || ofRule === pattern
        ? pattern
        : pattern === "*"
        ? ofRule
        : `${ofRule} that is ${pattern} too`
    )
  );
  return [...new Set([...names, ...patterns])];
}
