// SPDX-License-Identifier: GPL-2.0-or-later
import { type Config, type MachineSettings, TEMPLATE_NAME } from "./config.ts";
import { BuildFailure } from "./errors.ts";

/** The template that a job gets, before anybody looked whether it exists. */
export interface TemplateChoice {
  readonly name: string;
  /** The volumes of the template pool that may hold it, the first that exists counts. */
  readonly volumes: readonly string[];
  readonly settings: MachineSettings;
  /** Whether the host's settings name it: then it is the host's fault if it is not there. */
  readonly isPromised: boolean;
}

/**
 * The template for a job that asks for this one, by its name or by an alias of the settings, or for
 * none (null). Throws BuildFailure if the word is no name, or if there is no default.
 */
export function chooseTemplate(config: Config, requested: string | null): TemplateChoice {
  const name = requested ?? config.defaultTemplate;
  if (name === null) {
    throw new BuildFailure({
      what: "The job asks for no template, and this host has no default",
      advice: "Set the variable DISTRO, or image:, to the name of a template; " +
        "or have the host's settings name a default_template",
    });
  }
  for (const [template, { volume, aliases, machine }] of config.templates) {
    if (template !== name && !aliases.includes(name)) continue;
    return {
      name: template,
      volumes: volume === null ? volumesOf(template) : [volume],
      settings: machine,
      isPromised: true,
    };
  }
  checkTemplateName(name);
  return {
    name,
    volumes: volumesOf(name),
    settings: config.machine,
    isPromised: requested === null,
  };
}

function volumesOf(template: string): string[] {
  return [`${template}.qcow2`, template];
}

/** Throws BuildFailure if a job's word for a template is no name, so that it is never looked up. */
export function checkTemplateName(template: string): void {
  if (TEMPLATE_NAME.test(template)) return;
  throw new BuildFailure({
    what: template === ""
      ? "The job asks for a template with an empty name"
      : `The job asks for the template ${JSON.stringify(template)}, which is no template's name`,
    advice: "Set the variable DISTRO, or image:, to the name of a template: letters, digits, " +
      "'.', '_', '+' and '-'",
  });
}
