// SPDX-License-Identifier: GPL-2.0-or-later
import type { Env } from "../job/job.ts";
import type { Directories } from "../machine/context.ts";
import { type Config, DEFAULT_CONFIG } from "../settings/settings.ts";

export function directoriesOf(
  env: Env,
  { libvirt: { uri }, postMortem }: Pick<Config, "libvirt" | "postMortem">,
): Directories {
  const lastingKeys = lastingDirectory(env, uri);
  return {
    home: env["HOME"],
    keys: attemptDirectory(env) ?? lastingKeys,
    lastingKeys,
    postMortems: postMortem.dir ?? stateDirectory(env),
  };
}

/** Under GitLab Runner, the directory that it removes after the attempt. */
function attemptDirectory(env: Env): string | null {
  const response = env["JOB_RESPONSE_FILE"];
  return response ? response.slice(0, response.lastIndexOf("/")) : null;
}

/**
 * The user's own directory, one for each hypervisor: gc must not take another's keys for leftovers.
 */
function lastingDirectory(env: Env, uri: string): string {
  const below = uri === DEFAULT_CONFIG.libvirt.uri ? "" : `/${encodeURIComponent(uri)}`;
  if (Deno.uid() === 0) return `/run/libvirt-gci${below}`;
  const runtime = env["XDG_RUNTIME_DIR"];
  const base = runtime ? `${runtime}/libvirt-gci` : `${env["HOME"] ?? ""}/.cache/libvirt-gci`;
  return base + below;
}

/** For downloads, which are continued after a failure. */
export function cacheDirectory(env: Env): string {
  const cache = env["XDG_CACHE_HOME"] ||
    (Deno.uid() === 0 ? "/var/cache" : `${env["HOME"] ?? ""}/.cache`);
  return `${cache}/libvirt-gci/images`;
}

/** Where systemd's file-hierarchy(7) has what lasts: of the system's, or of one user. */
function stateDirectory(env: Env): string {
  const state = Deno.uid() === 0
    ? "/var/lib"
    : env["XDG_STATE_HOME"] || `${env["HOME"] ?? ""}/.local/state`;
  return `${state}/libvirt-gci/post-mortem`;
}
