// SPDX-License-Identifier: GPL-2.0-or-later
import { BuildFailure, orFailure, ScriptFailure, UsageError } from "../errors.ts";
import { type Env, isByHand } from "../job/job.ts";

/** As ssh has it: for any failure of a command that otherwise passes on the guest's status. */
const LOST = 255;

/**
 * The exit status that tells GitLab Runner whose fault this is
 * (https://docs.gitlab.com/runner/executors/custom/#error-handling), or by hand the guest's own.
 */
export function exitStatus(
  error: unknown,
  env: Env,
  { passesStatus = false }: { readonly passesStatus?: boolean } = {},
): number {
  if (error instanceof UsageError) return 2;
  if (passesStatus && isByHand(env)) {
    return error instanceof ScriptFailure ? statusFrom(error.scriptStatus, LOST) : LOST;
  }
  return error instanceof BuildFailure
    ? statusFrom(env["BUILD_FAILURE_EXIT_CODE"], 1)
    : statusFrom(env["SYSTEM_FAILURE_EXIT_CODE"], 2);
}

/** A failure must never look like success, whatever the value is. */
function statusFrom(value: string | number | undefined, otherwise: number): number {
  const status = Number(value);
  return Number.isInteger(status) && status > 0 && status < 256 ? status : otherwise;
}

/** Tells GitLab Runner (17.9) the script's status, or deletes an earlier one. Throws SystemFailure. */
export async function reportScriptStatus(error: unknown, env: Env): Promise<void> {
  const file = env["BUILD_EXIT_CODE_FILE"];
  if (file === undefined) return;
  const told = error instanceof ScriptFailure
    ? Deno.writeTextFile(file, `${error.scriptStatus}\n`)
    : Deno.remove(file).catch((error) => {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    });
  await orFailure(told, {
    what: `Cannot write the script's status for GitLab to "${file}" (BUILD_EXIT_CODE_FILE)`,
    advice: "Run libvirt-gci as GitLab Runner's user, and free space in the file's directory",
  });
}
