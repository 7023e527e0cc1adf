// SPDX-License-Identifier: GPL-2.0-or-later
import { parse, TomlError } from "smol-toml";
import * as v from "valibot";

/** Where GitLab Runner has its settings when it runs as root. */
export const FILE = "/etc/gitlab-runner/config.toml";
/** The command to change them; the runner reads them again by itself. */
export const EDIT = `\${EDITOR:-vi} ${FILE}`;

const words = v.optional(v.array(v.string()), []);
const seconds = (otherwise: number) => v.optional(v.number(), otherwise);

/** The defaults are GitLab Runner's own. */
const custom = v.object({
  config_exec: v.optional(v.string(), ""),
  config_args: words,
  prepare_exec: v.optional(v.string(), ""),
  prepare_args: words,
  prepare_exec_timeout: seconds(3600),
  run_exec: v.optional(v.string(), ""),
  run_args: words,
  cleanup_exec: v.optional(v.string(), ""),
  cleanup_args: words,
  cleanup_exec_timeout: seconds(3600),
  graceful_kill_timeout: seconds(600),
  force_kill_timeout: seconds(10),
});

const runner = v.object({
  name: v.optional(v.string(), ""),
  executor: v.optional(v.string(), ""),
  limit: v.optional(v.number(), 0),
  builds_dir: v.optional(v.string(), ""),
  cache_dir: v.optional(v.string(), ""),
  custom: v.optional(custom, {}),
});

const schema = v.object({
  concurrent: v.optional(v.number(), 1),
  runners: v.optional(v.array(runner), []),
});

/** The part of config.toml that concerns a custom executor. */
export type RunnerConfig = v.InferOutput<typeof schema>;
export type Runner = RunnerConfig["runners"][number];

/** Reads config.toml. Throws SyntaxError, which quotes nothing of the file: it holds tokens. */
export function parseRunnerConfig(toml: string): RunnerConfig {
  const result = v.safeParse(schema, parseToml(toml));
  if (result.success) return result.output;
  const keys = result.issues.map((issue) => v.getDotPath(issue) ?? "?");
  throw new SyntaxError(`these keys have values of the wrong type: ${keys.join(", ")}`);
}

function parseToml(toml: string): unknown {
  try {
    return parse(toml);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    throw new SyntaxError(`the TOML is invalid at line ${error.line}, column ${error.column}`);
  }
}
