// SPDX-License-Identifier: GPL-2.0-or-later
import { BuildFailure, type Failure } from "../errors.ts";
import { quoted } from "../quoted.ts";
import { TEMPLATE_NAME } from "../settings/kinds.ts";
import type { Config, MachineSettings, Rule, TemplateSettings } from "../settings/settings.ts";

/** The template that a job gets, whether it exists or not. */
export interface TemplateChoice {
  readonly name: string;
  /** The volumes of the template pool that may hold it; the first that exists counts. */
  readonly volumes: readonly string[];
  readonly settings: MachineSettings;
  /** Whether the host's settings name it. Then it is the host's fault if it does not exist. */
  readonly isPromised: boolean;
}

/** Who asks for a template. */
export interface Asker {
  /** Whether it is the operator, whom no setting binds. */
  readonly isOperator?: boolean;
  readonly byHand?: boolean;
  readonly rule?: Rule | null;
}

/** A template under the one name that settings and rules know it by. */
interface Found {
  readonly name: string;
  /** Its entry in the settings; null if they do not name it. */
  readonly entry: TemplateSettings | null;
}

/** The request: the job's word, or null for none, and whether it can be a template's name. */
interface Asked {
  readonly requested: string | null;
  readonly isName: boolean;
}

const MOST_NAMES = 30;
const MOST_ALIASES = 3;

/** The advice if a template does not exist, given the volumes of the pool that may hold one. */
export type TemplateAdvice = (volumes: readonly string[]) => string;

/** The job asks for a template that it may not have. The advice comes from the settings alone. */
export class TemplateRefusal extends BuildFailure {
  readonly #failure: Failure;
  readonly #advise: TemplateAdvice;

  constructor(failure: Failure, advise: TemplateAdvice) {
    super(failure);
    this.#failure = failure;
    this.#advise = advise;
  }

  /** The same failure, whose advice names the templates that these volumes hold. */
  withVolumes(volumes: readonly string[]): BuildFailure {
    return new BuildFailure({ ...this.#failure, advice: this.#advise(volumes) });
  }
}

/** The template of this name or alias; null is the default. Throws TemplateRefusal. */
export function chooseTemplate(
  config: Config,
  requested: string | null,
  asker: Asker = {},
): TemplateChoice {
  const word = requested ?? config.defaultTemplate;
  const found = word === null ? null : findTemplateName(config, word);
  if (found === null || !mayHave(config, found, asker)) {
    throw refusal(config, { requested, isName: found !== null }, asker);
  }
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

/** The templates in the settings that want standby machines. */
export function templatesToWait(config: Config): TemplateChoice[] {
  return namedTemplates(config).filter(({ settings }) => settings.standby > 0);
}

/**
 * The advice if the template that the asker asks for does not exist: those that the asker may have.
 */
export function templateAdvice(config: Config, asker: Asker): TemplateAdvice {
  return (volumes) => {
    if (volumes.length === 0) {
      return "Add a template on the host: libvirt-gci template add NAME IMAGE " +
        `(the storage pool "${config.pools.templates}" has none)`;
    }
    const held = volumes.map((volume) => findHeld(config, volume));
    return advice(namesOf(held, config, asker).sort(), asker);
  };
}

/** The name of a template that, added by `template add`, takes the place of this volume. */
export function addedName(volume: string): string {
  return volume.replace(/\.qcow2$/, "");
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

/** Each volume belongs to one name, so its own name leads to the same template's settings. */
function findTemplateName(config: Config, word: string): Found | null {
  const named = namedOf(config);
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

function namedOf({ templates }: Config): { name: string; entry: TemplateSettings }[] {
  return [...templates].map(([name, entry]) => ({ name, entry }));
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

function refusal(config: Config, { requested, isName }: Asked, asker: Asker): TemplateRefusal {
  const hint = requested === null && config.defaultTemplate === null
    ? `; or ask the administrator to set "default_template"`
    : "";
  const advise = templateAdvice(config, asker);
  return new TemplateRefusal(
    {
      fault: isName ? "request" : "template",
      what: `The job asks for ${whatIsWrong(config, { requested, isName }, asker)}`,
      advice: advice(allowedNames(config, asker), asker) + hint,
    },
    (volumes) => advise(volumes) + hint,
  );
}

function whatIsWrong(
  { defaultTemplate }: Config,
  { requested, isName }: Asked,
  { rule }: Asker,
): string {
  const settings = rule?.templates
    ? `${rule.name} of this host's settings`
    : "this host's settings";
  if (requested === null) {
    // Without its name: a job learns of no template that it may not have.
    return defaultTemplate === null
      ? "no template, and this host has no default"
      : `no template, and the default is not allowed by ${settings}`;
  }
  if (requested === "") return "a template with an empty name";
  const template = `the template ${quoted(requested)}, which is`;
  return isName
    ? `${template} not allowed by ${settings}`
    : `${template} not a valid template name (letters, digits, '.', '_', '+' and '-')`;
}

function advice(names: readonly string[], { isOperator, byHand }: Asker): string {
  if (names.length === 0) return "Use another runner: this host has no template for this job";
  const more = names.length > MOST_NAMES ? `, and ${names.length - MOST_NAMES} more` : "";
  const how = isOperator
    ? "Name a template that this host has"
    : byHand
    ? "Name a template with --distro"
    : "Set image: or the variable DISTRO to a template that this job may have";
  return `${how}: ${names.slice(0, MOST_NAMES).join(", ")}${more}`;
}

/** The template that a job gets from this volume, by whatever name it asks; null if by none. */
function findHeld(config: Config, volume: string): Found | null {
  const holds = (found: Found): boolean => volumesOf(found).includes(volume);
  const named = namedOf(config).find(holds);
  if (named !== undefined) return named;
  const found = findTemplateName(config, volume);
  return found !== null && holds(found) ? found : null;
}

/** The names, then the patterns, of the templates that the asker may have. */
function allowedNames(config: Config, asker: Asker): string[] {
  const { defaultTemplate, allowedTemplates, templates, pools } = config;
  const named = [...templates.keys(), ...(defaultTemplate === null ? [] : [defaultTemplate])]
    .map((name) => findTemplateName(config, name));
  const patterns = (asker.rule?.templates ?? ["*"]).flatMap((ofRule) =>
    allowedTemplates.map((pattern) =>
      ofRule === "*" || ofRule === pattern
        ? pattern
        : pattern === "*"
        ? ofRule
        : `${ofRule} that is ${pattern} too`
    )
  );
  const others = (asker.isOperator ? ["*"] : patterns)
    .map((pattern) => pattern === "*" ? `any of the storage pool "${pools.templates}"` : pattern);
  return [...namesOf(named, config, asker), ...new Set(others)];
}

/** The names of those that the asker may have, each once, with aliases. */
function namesOf(found: readonly (Found | null)[], config: Config, asker: Asker): string[] {
  const names = found
    .filter((found) => found !== null)
    .filter((found) => mayHave(config, found, asker))
    .map(withAliases);
  return [...new Set(names)];
}

function withAliases({ name, entry }: Found): string {
  const aliases = entry?.aliases ?? [];
  if (aliases.length === 0) return name;
  const shown = aliases.slice(0, MOST_ALIASES).join(", ");
  return `${name} (or ${shown}${aliases.length > MOST_ALIASES ? ", …" : ""})`;
}
