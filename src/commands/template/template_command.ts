// SPDX-License-Identifier: GPL-2.0-or-later
import { defineGroup } from "../../cli/command.ts";
import { templateAdd } from "./template_add.ts";
import { templateList } from "./template_list.ts";
import { templatePush } from "./template_push.ts";
import { templateRemove } from "./template_remove.ts";
import { templateUpdate } from "./template_update.ts";

export const command = defineGroup("template", {
  description: "Add, list, update and remove templates, or push their images to a registry.",
  commands: [templateAdd, templateList, templateUpdate, templateRemove, templatePush],
});
