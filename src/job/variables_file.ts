// SPDX-License-Identifier: GPL-2.0-or-later
import { UsageError } from "../errors.ts";
import type { Env } from "./job.ts";

const PREFIX = "CUSTOM_ENV_";
const LINE = /^(?:CUSTOM_ENV_)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$/;
const QUOTED = /^(["'])(.*)\1$/;

/** The environment with the job's variables from this file instead of its own. Throws UsageError. */
export async function withVariablesOf(file: string, env: Env): Promise<Env> {
  let text: string;
  try {
    text = await Deno.readTextFile(file);
  } catch (cause) {
    throw new UsageError({
      what: `Cannot read the variables in "${file}"`,
      cause,
      advice: "Check that the file exists and that this user can read it",
    });
  }
  const others = Object.entries(env).filter(([name]) => !name.startsWith(PREFIX));
  return Object.fromEntries([...others, ...parseVariables(text, file)]);
}

/** Reads lines `KEY=VALUE`, quoted or not, and `# words`. `file` is for messages. Throws UsageError. */
export function parseVariables(text: string, file: string): [name: string, value: string][] {
  return text.split("\n").flatMap((line, i) => {
    const trimmed = line.trim();
    if (trimmed === "" || trimmed.startsWith("#")) return [];
    const [, key, value = ""] = LINE.exec(trimmed) ?? [];
    const bare = QUOTED.exec(value)?.[2];
    if (key !== undefined && (bare !== undefined || !/^["']/.test(value))) {
      return [[PREFIX + key, bare ?? value]];
    }
    throw new UsageError({
      what: `Line ${i + 1} of "${file}" is not a variable`, // and may be a secret
      advice:
        "Write one KEY=VALUE per line; close a value that begins with a quote with the same quote",
    });
  });
}
