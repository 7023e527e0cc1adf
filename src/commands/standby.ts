// SPDX-License-Identifier: GPL-2.0-or-later
import { switchFlag } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { fillStandbys, removeStandbys } from "../machine/standby/fill.ts";

export const command = defineCommand("standby", {
  description:
    'Create as many standby machines as the setting "standby" says, and remove those that no job could use.',
  footer: "Each prepare and cleanup does so in the background.",
  fields: {
    remove: switchFlag("--remove", "Remove all standby machines and create no new ones."),
  },
  run: ({ remove }, { onHost }) => onHost(remove ? removeStandbys : fillStandbys),
});
