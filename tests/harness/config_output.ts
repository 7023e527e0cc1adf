// SPDX-License-Identifier: GPL-2.0-or-later

/** What config printed. */
export interface ConfigOutput {
  readonly buildsDir?: string;
  readonly cacheDir?: string;
  readonly isBuildsDirShared?: boolean;
  readonly hostname?: string;
  readonly shell?: string;
  readonly jobEnv?: Readonly<Record<string, string>>;
  readonly driver?: { readonly name?: string; readonly version?: string };
}

type JsonObject = Readonly<Record<string, unknown>>;

/**
 * Reads config's stdout: no byte at all, or one JSON object and nothing else.
 * Unknown keys are let through, as Go's decoder does. Throws an Error otherwise.
 */
export function parseConfigOutput(stdout: Uint8Array): ConfigOutput {
  if (stdout.length === 0) return {};
  const output: unknown = JSON.parse(new TextDecoder("utf-8", { ignoreBOM: true }).decode(stdout));
  if (!isObject(output)) throw new TypeError("config did not print a JSON object");
  const driver = objectAt(output, "driver");
  const jobEnv = objectAt(output, "job_env");
  return {
    buildsDir: stringAt(output, "builds_dir"),
    cacheDir: stringAt(output, "cache_dir"),
    isBuildsDirShared: booleanAt(output, "builds_dir_is_shared"),
    hostname: stringAt(output, "hostname"),
    shell: stringAt(output, "shell"),
    jobEnv: jobEnv && Object.fromEntries(
      Object.keys(jobEnv).map((key) => [key, stringAt(jobEnv, key) ?? ""]),
    ),
    driver: driver && { name: stringAt(driver, "name"), version: stringAt(driver, "version") },
  };
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function stringAt(object: JsonObject, key: string): string | undefined {
  const value = object[key] ?? undefined; // Go takes null for "not set".
  if (value === undefined || typeof value === "string") return value;
  throw new TypeError(`"${key}" is no string`);
}

function booleanAt(object: JsonObject, key: string): boolean | undefined {
  const value = object[key] ?? undefined;
  if (value === undefined || typeof value === "boolean") return value;
  throw new TypeError(`"${key}" is no boolean`);
}

function objectAt(object: JsonObject, key: string): JsonObject | undefined {
  const value = object[key] ?? undefined;
  if (value === undefined || isObject(value)) return value;
  throw new TypeError(`"${key}" is no object`);
}
