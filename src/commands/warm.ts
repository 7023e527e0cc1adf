// SPDX-License-Identifier: GPL-2.0-or-later
import { argumentList, switchFlag } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { PROGRAM } from "../cli/program_name.ts";
import { UsageError } from "../errors.ts";
import { removeWarmImages, warm } from "../machine/warm/save.ts";

/** Saving much RAM takes longer than a call of a job may. */
const CALL_SECONDS = 600;

export const command = defineCommand("warm", {
  description:
    "Create a warm image: the saved RAM of a booted machine, from which the template's machines resume.",
  footer: 'Jobs use it if "start" is warm or auto. A template with a valid warm image is skipped.',
  fields: {
    templates: argumentList(
      "TEMPLATE",
      'The template. The default is all templates with "standby", or with "start" set to warm or auto.',
    ),
    remove: switchFlag("--remove", "Remove the warm images of these templates."),
  },
  check: ({ templates, remove }) => {
    if (!remove || templates.length > 0) return;
    throw new UsageError({
      what: "The command warm --remove needs the name of at least one template",
      advice: `List the warm images: ${PROGRAM} list`,
    });
  },
  run: async ({ templates, remove }, { settings, onHost }) => {
    const config = await settings();
    const callSeconds = Math.max(config.libvirt.callSeconds, CALL_SECONDS);
    const patient = { ...config, libvirt: { ...config.libvirt, callSeconds } };
    await onHost(
      (context) => remove ? removeWarmImages(templates, context) : warm(templates, context),
      { config: patient },
    );
  },
});
