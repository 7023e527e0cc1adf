// SPDX-License-Identifier: GPL-2.0-or-later
import { switchFlag } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { fillStandbys, removeStandbys } from "../machine/standby/fill.ts";

export const command = defineCommand("standby", {
  description:
    'Create the standby machines that the setting "standby" asks for, and remove those that no job can use.',
  footer: "Each prepare and cleanup runs this command in the background.",
  fields: {
    remove: switchFlag("--remove", "Remove all standby machines and create no new ones."),
  },
  run: ({ remove }, { onHost }) => onHost(remove ? removeStandbys : fillStandbys),
});
