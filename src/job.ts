// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure, UsageError } from "./errors.ts";

/** The environment: what GitLab Runner, or an operator, says about the job. */
export type Env = Readonly<Record<string, string | undefined>>;

/** The job whose machine a stage works on. */
export interface Job {
  /** The name of its machine; null if nobody gave one and it is for prepare to make one up. */
  readonly machine: string | null;
  /** GitLab's id of the job; null by hand. */
  readonly id: string | null;
  /** The project, as people know it; null by hand. */
  readonly project: string | null;
  /** The template it asks for, by DISTRO or `image:`, unchecked; null if it does not say. */
  readonly template: string | null;
  /** How long GitLab lets it run; null if unknown. */
  readonly timeoutSeconds: number | null;
  /** Whether a person runs the stage, not GitLab Runner. */
  readonly byHand: boolean;
}

/** What the command line says about the job. */
export interface JobOptions {
  readonly machine?: string | undefined;
  readonly distro?: string | undefined;
}

/**
 * The variable by which `config` tells the later stages the machine's name. GitLab Runner sets it
 * from `job_env`, without the prefix that a job's own variables get, so no job can set it.
 */
export const MACHINE_VARIABLE = "LIBVIRT_GCI_MACHINE";

/** What we read of GitLab's answer to the runner, which a job cannot forge. */
interface JobResponse {
  readonly id: string;
  readonly projectName: string;
  readonly projectPath: string;
  readonly timeoutSeconds: number | null;
  /** Names the attempt: the directory that the runner made for it, and GitLab's own ids. */
  readonly attempt: string;
}

/**
 * The job of this environment and these options.
 *
 * A job sets its own CI variables, so its id and project come from JOB_RESPONSE_FILE; the variables
 * serve people who try a stage by hand. Throws UsageError if `--machine` is no name, and
 * SystemFailure if the runner's file cannot be read.
 */
export async function jobFromEnv(env: Env, options: JobOptions = {}): Promise<Job> {
  const response = await readJobResponse(env);
  const { CUSTOM_ENV_DISTRO: distro, CUSTOM_ENV_CI_JOB_IMAGE: image } = env;
  const requested = distro ?? (image || undefined);
  const id = response?.id ?? env["CUSTOM_ENV_CI_JOB_ID"];
  const project = response?.projectName ?? env["CUSTOM_ENV_CI_PROJECT_NAME"];
  const named = options.machine ?? (env[MACHINE_VARIABLE] || undefined);
  if (named !== undefined) checkMachineName(named);
  const machine = named ??
    (id && project !== undefined
      ? await machineName([project, requested ?? "", id], response?.attempt)
      : null);
  return {
    machine,
    id: id ?? null,
    project: response?.projectPath ?? project ?? null,
    template: options.distro ?? requested ?? null,
    timeoutSeconds: response?.timeoutSeconds ?? null,
    byHand: response === null,
  };
}

/** The job's machine, for the stages that need one to be there. Throws UsageError without. */
export function requireMachine(job: Job): string {
  if (job.machine !== null) return job.machine;
  throw new UsageError({
    what: "Which machine? Nothing names it",
    advice: "Say --machine NAME, or set CUSTOM_ENV_CI_PROJECT_NAME, CUSTOM_ENV_CI_JOB_ID and " +
      "CUSTOM_ENV_DISTRO as they were for prepare",
  });
}

/** A name for a machine that a person starts and does not name. */
export function makeUpMachineName(template: string): string {
  const random = crypto.getRandomValues(new Uint8Array(4));
  return slug(`gci-${slug(template).slice(0, 40)}-${random.toHex()}`);
}

const MOST_CHARACTERS = 63; // of a DNS label: the name is the guest's host name too
const HASH_CHARACTERS = 10;

/**
 * `gitlab-<project>-<distro>-<job id>`, safe for libvirt and DNS. A hash follows where the parts had
 * to be changed to be safe, and always under GitLab Runner, so that two attempts of a job, or two
 * GitLab servers, never share a name.
 */
export async function machineName(
  [project, distro, id]: readonly [project: string, distro: string, id: string],
  attempt?: string,
): Promise<string> {
  const plain = ["gitlab", project, distro, id].filter((part) => part !== "").join("-");
  const safe = plain === slug(plain) && plain.length <= MOST_CHARACTERS && distro !== "";
  if (safe && attempt === undefined) return plain;

  const hash = await sha256([project, distro, id, attempt ?? ""].join("\0"));
  const end = `-${slug(id).slice(0, 16)}-${hash.slice(0, HASH_CHARACTERS)}`;
  const middle = slug(distro).slice(0, 18);
  const room = MOST_CHARACTERS - end.length - middle.length - 1;
  const start = slug(`gitlab-${project}`).slice(0, room);
  return slug(`${start}-${middle}${end}`);
}

/** Lower case letters and digits with single hyphens between them. */
function slug(text: string): string {
  return text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
}

async function sha256(text: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return new Uint8Array(digest).toHex();
}

function checkMachineName(machine: string): void {
  if (/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(machine)) return;
  throw new UsageError({
    what: `The machine's name ${JSON.stringify(machine)} is no name for a machine`,
    advice: "Use letters, digits, '.', '_' and '-', 63 characters at most",
  });
}

async function readJobResponse(env: Env): Promise<JobResponse | null> {
  const file = env["JOB_RESPONSE_FILE"];
  if (!file) return null;
  try {
    return parseJobResponse(await Deno.readTextFile(file), file);
  } catch (cause) {
    // With the name from job_env, a late cleanup finds its machine after the runner is gone.
    if (cause instanceof Deno.errors.NotFound && env[MACHINE_VARIABLE]) return null;
    throw new SystemFailure({
      what: `Cannot read GitLab's description of the job in "${file}" (JOB_RESPONSE_FILE)`,
      // The parser's words would quote the file, which holds tokens.
      cause: cause instanceof SyntaxError ? new SyntaxError("it is not JSON") : cause,
      advice: "Use GitLab Runner 14.1 or newer, and let this user read the runner's files",
    });
  }
}

function parseJobResponse(json: string, file: string): JobResponse {
  const { id, job_info: info, runner_info: runner, git_info: git } = JSON.parse(json) ?? {};
  if (!Number.isSafeInteger(id) || id <= 0 || typeof info?.project_name !== "string") {
    throw new TypeError("it has no id or no job_info.project_name");
  }
  const timeout = runner?.timeout;
  return {
    id: String(id),
    projectName: info.project_name,
    projectPath: String(info.project_full_path ?? info.project_name),
    timeoutSeconds: Number.isSafeInteger(timeout) && timeout > 0 ? timeout : null,
    attempt: [dirname(file), info.project_id, serverOf(git?.repo_url)].join("\0"),
  };
}

/** The host of GitLab's clone URL; the rest of the URL holds a token. */
function serverOf(repoUrl: unknown): string {
  return typeof repoUrl === "string" && URL.canParse(repoUrl) ? new URL(repoUrl).host : "";
}

function dirname(file: string): string {
  return file.slice(0, file.lastIndexOf("/"));
}
