// SPDX-License-Identifier: GPL-2.0-or-later
import * as v from "valibot";
import { isKeys } from "./mistakes.ts";
import {
  count,
  directory,
  machineEntries,
  name,
  seconds,
  text,
  wholeNumber,
} from "./machine_settings.ts";

/** The name of a template that the settings need not name: what a job may write in DISTRO. */
export const TEMPLATE_NAME = /^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$/;

const pattern = text(/^[^\p{C}]+$/u, "a name or a pattern, such as debian-*");
const patterns = v.array(pattern, "a list of names and patterns, such as [debian-*]");

const templateEntries = {
  volume: v.optional(name),
  aliases: v.optional(v.array(text(/^[^\p{C}]+$/u, "a name"), "a list of names")),
  ...machineEntries,
};

const maxMachines = v.optional(wholeNumber(1, 10_000));

const ruleEntries = {
  projects: v.optional(
    v.pipe(patterns, v.minLength(1, "a list with a project or a pattern in it")),
  ),
  protected: v.optional(v.boolean("true or false")),
  templates: v.optional(patterns),
  max_vcpus: machineEntries.max_vcpus,
  max_memory_mib: machineEntries.max_memory_mib,
  max_disk_gib: machineEntries.max_disk_gib,
  max_keep_minutes: machineEntries.max_keep_minutes,
  allow_nested: machineEntries.allow_nested,
  max_machines: maxMachines,
};

const configEntries = {
  uri: v.optional(text(/^[a-z][\w.+-]*:\S+$/i, "a libvirt URI, such as qemu:///system")),
  call_seconds: v.optional(seconds),
  metrics_file: v.optional(
    text(/^\/([^\p{C}]*\/)?[^\p{C}/]+\.prom$/u, "an absolute path that ends in .prom"),
  ),
  post_mortem_dir: v.optional(directory),
  post_mortems: v.optional(wholeNumber(0, 10_000)),
  post_mortem_mib: v.optional(wholeNumber(1, 1_000_000)),
  template_pool: v.optional(name),
  overlay_pool: v.optional(name),
  default_template: v.optional(
    text(TEMPLATE_NAME, "the name of a template"),
  ),
  allowed_templates: v.optional(patterns),
  max_kept_machines: v.optional(count),
  max_machines: maxMachines,
  overcommit_memory: v.optional(v.boolean("true or false")),
  reserve_memory_mib: v.optional(wholeNumber(0, 16_777_216)),
  reserve_disk_gib: v.optional(wholeNumber(0, 65_536)),
  admission_seconds: v.optional(wholeNumber(0, 86_400)),
  ...machineEntries,
  templates: v.optional(
    v.pipe(
      v.unknown(),
      v.check(isKeys, "the names of templates, each with settings below it"),
      v.record(name, v.nullable(closed(templateEntries))),
    ),
  ),
  rules: v.optional(v.array(closed(ruleEntries), "a list of rules")),
};

/** The file, as it may be. */
export const schema = closed(configEntries);

/** The file, as it is. */
export type RawConfig = v.InferOutput<typeof schema>;

/** An object that has these keys and no others. */
function closed<const Entries extends v.ObjectEntries>(entries: Entries) {
  return v.pipe(
    v.unknown(),
    v.check(isKeys, "keys with values"),
    v.objectWithRest(entries, v.never(Object.keys(entries).join(", "))),
  );
}
