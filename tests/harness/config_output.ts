// SPDX-License-Identifier: GPL-2.0-or-later
import * as v from "valibot";

const TEXT = v.nullish(v.string()); // Go takes null for "not set"

const OUTPUT = v.object({
  builds_dir: TEXT,
  cache_dir: TEXT,
  builds_dir_is_shared: v.nullish(v.literal(false)), // which would change the project's directory
  shell: v.nullish(v.picklist(["bash", "sh"])),
  job_env: v.nullish(v.record(v.string(), v.string())),
  driver: v.nullish(v.object({ name: TEXT, version: TEXT })),
});

/** What config printed. */
export type ConfigOutput = Partial<v.InferOutput<typeof OUTPUT>>;

/**
 * Reads config's stdout: no byte at all, or one JSON object and nothing else.
 * Unknown keys are let through, as Go's decoder does. Throws an Error otherwise.
 */
export function parseConfigOutput(stdout: Uint8Array): ConfigOutput {
  if (stdout.length === 0) return {};
  const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(stdout);
  return v.parse(OUTPUT, JSON.parse(text));
}
