// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure, UsageError } from "../errors.ts";
import { directoryOf } from "../files.ts";
import { sha256 } from "../sha256.ts";

/** The environment: what GitLab Runner, or an operator, says about the job. */
export type Env = Readonly<Record<string, string | undefined>>;

export interface Job {
  /** The name of its machine; null if prepare is to make one up. */
  readonly machine: string | null;
  readonly id: string | null;
  /** The full path of its project, such as `group/project`; null if unknown. */
  readonly project: string | null;
  /** Whether it runs for a protected branch or tag; null if unknown. */
  readonly isProtected: boolean | null;
  /** The template it asks for, by DISTRO or `image:`, unchecked; null if it does not say. */
  readonly template: string | null;
  /** Whether the operator chose the template with `--distro`, and not the job. */
  readonly isTemplateFromOperator: boolean;
  readonly requests: SizeRequests;
  /** The names of its `services:`, as its author wrote them, unchecked; by hand there are none. */
  readonly services: readonly string[];
  /** How long GitLab lets it run; null if unknown. */
  readonly timeoutSeconds: number | null;
  /** The directory that GitLab Runner made for this attempt alone; null by hand. */
  readonly attemptDir: string | null;
  /** The process that called `config`, by its mark; null if unknown. */
  readonly configCaller: string | null;
  readonly byHand: boolean;
}

/** A job's requests by LIBVIRT_GCI_VCPUS and the like, unchecked; null if it does not ask. */
export interface SizeRequests {
  readonly vcpus: string | null;
  readonly memoryMib: string | null;
  readonly diskGib: string | null;
  readonly keepMinutes: string | null;
  readonly nested: string | null;
}

export interface JobOptions {
  readonly machine?: string | undefined;
  readonly distro?: string | undefined;
  /** By hand, what GitLab would tell. Under GitLab Runner it is ignored. */
  readonly project?: string | undefined;
  readonly isProtected?: boolean | undefined;
}

/** Tells the later stages the machine's name, by the `job_env` of `config`: no job can set it. */
export const MACHINE_VARIABLE = "LIBVIRT_GCI_MACHINE";

/** The variable by which `config` tells them, in the same way, which process called it. */
export const CALLER_VARIABLE = "LIBVIRT_GCI_CALLER";

/** Variables of GitLab Runner, of which each version sets some and people by hand none. */
const RUNNER_VARIABLES = [
  "JOB_RESPONSE_FILE",
  "BUILD_FAILURE_EXIT_CODE",
  "SYSTEM_FAILURE_EXIT_CODE",
  "BUILD_EXIT_CODE_FILE",
];

/** Whether a person runs the stage, not GitLab Runner. */
export function isByHand(env: Env): boolean {
  return RUNNER_VARIABLES.every((name) => !env[name]);
}

/** The part of the job that comes from GitLab, and not from the job's own variables. */
type Identity = Pick<
  Job,
  "machine" | "id" | "project" | "isProtected" | "services" | "timeoutSeconds" | "attemptDir"
>;

const UNKNOWN: Identity = {
  machine: null,
  id: null,
  project: null,
  isProtected: null,
  services: [],
  timeoutSeconds: null,
  attemptDir: null,
};

/**
 * The job of this environment and these options. Under GitLab Runner, which job it is comes from
 * JOB_RESPONSE_FILE and never from variables, which a job can set. Throws UsageError if `--machine` is
 * not valid, and SystemFailure without the runner's file.
 */
export async function jobFromEnv(env: Env, options: JobOptions = {}): Promise<Job> {
  const byHand = isByHand(env);
  const named = options.machine ?? (env[MACHINE_VARIABLE] || undefined);
  if (named !== undefined) checkMachineName(named);
  const identity = byHand
    ? await identityByHand(env, options)
    : await identityUnderRunner(env, named !== undefined);
  const { CUSTOM_ENV_DISTRO: distro, CUSTOM_ENV_CI_JOB_IMAGE: image } = env;
  return {
    ...identity,
    machine: named ?? identity.machine,
    configCaller: env[CALLER_VARIABLE] || null,
    template: options.distro ?? distro ?? (image || null),
    isTemplateFromOperator: options.distro !== undefined,
    requests: {
      vcpus: env["CUSTOM_ENV_LIBVIRT_GCI_VCPUS"] ?? null,
      memoryMib: env["CUSTOM_ENV_LIBVIRT_GCI_MEMORY_MIB"] ?? null,
      diskGib: env["CUSTOM_ENV_LIBVIRT_GCI_DISK_GIB"] ?? null,
      keepMinutes: env["CUSTOM_ENV_LIBVIRT_GCI_KEEP_MINUTES"] ?? null,
      nested: env["CUSTOM_ENV_LIBVIRT_GCI_NESTED"] ?? null,
    },
    byHand,
  };
}

async function identityByHand(env: Env, options: JobOptions): Promise<Identity> {
  const { CUSTOM_ENV_CI_JOB_ID: id, CUSTOM_ENV_CI_PROJECT_NAME: projectName } = env;
  const { CUSTOM_ENV_CI_COMMIT_REF_PROTECTED: isProtected } = env;
  const distro = env["CUSTOM_ENV_DISTRO"] ?? env["CUSTOM_ENV_CI_JOB_IMAGE"] ?? "";
  return {
    ...UNKNOWN,
    machine: id && projectName !== undefined ? await machineName([projectName, distro, id]) : null,
    id: id ?? null,
    project: options.project ?? env["CUSTOM_ENV_CI_PROJECT_PATH"] ?? projectName ?? null,
    isProtected: options.isProtected ??
      (isProtected === undefined ? null : isProtected === "true"),
  };
}

/** The job's machine, for the stages that need one to be there. Throws UsageError without. */
export function requireMachine(job: Job): string {
  if (job.machine !== null) return job.machine;
  throw new UsageError({
    what: "No machine is named",
    advice: "Add --machine NAME, or set CUSTOM_ENV_CI_PROJECT_NAME, CUSTOM_ENV_CI_JOB_ID and " +
      "CUSTOM_ENV_DISTRO to the values that prepare had",
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
 * `gitlab-<project>-<distro>-<job id>`, safe for libvirt and DNS. A hash of all parts follows if there is
 * an attempt or no distro, or if a part had to be changed: two attempts or two GitLab servers never
 * share a name.
 */
export async function machineName(
  [project, distro, id]: readonly [project: string, distro: string, id: string],
  attempt?: string,
): Promise<string> {
  const plain = ["gitlab", project, distro, id].filter((part) => part !== "").join("-");
  const safe = plain === slug(plain) && plain.length <= MOST_CHARACTERS && distro !== "";
  if (safe && attempt === undefined) return plain;

  const hash = await sha256(JSON.stringify([project, distro, id, attempt]));
  const end = `-${slug(id).slice(0, 16)}-${hash.slice(0, HASH_CHARACTERS)}`;
  const middle = slug(distro).slice(0, 18);
  const room = MOST_CHARACTERS - end.length - middle.length - 1;
  const start = slug(`gitlab-${project}`).slice(0, room);
  return slug(`${start}-${middle}${end}`);
}

const HASH = new RegExp(`-[0-9a-f]{${HASH_CHARACTERS}}$`);

/** The part of the name that the machines of all attempts at a job share under GitLab Runner. */
export function withoutAttempt(machine: string): string {
  return machine.replace(HASH, "");
}

/** Lower case letters and digits with single hyphens between them. */
function slug(text: string): string {
  return text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
}

export function isMachineName(name: string): boolean {
  return /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(name);
}

/** Throws UsageError if no machine of ours can have this name. */
export function checkMachineName(machine: string): void {
  if (isMachineName(machine)) return;
  throw new UsageError({
    what: `${JSON.stringify(machine)} is not a valid machine name`,
    advice: "Use letters, digits, '.', '_' and '-', 63 characters at most",
  });
}

/**
 * Takes it from GitLab and never from a variable, by which a job could name another job's machine.
 */
async function identityUnderRunner(env: Env, isNamed: boolean): Promise<Identity> {
  const file = env["JOB_RESPONSE_FILE"];
  if (!file) {
    if (isNamed) return UNKNOWN;
    throw new SystemFailure({
      what: "GitLab Runner does not identify the job, because it sets no JOB_RESPONSE_FILE",
      advice: "Use GitLab Runner 14.1 or newer",
    });
  }
  try {
    return await parseJobResponse(await Deno.readTextFile(file), file);
  } catch (cause) {
    // With the name from job_env, a late cleanup finds its machine after the runner is gone.
    if (cause instanceof Deno.errors.NotFound && env[MACHINE_VARIABLE]) {
      return { ...UNKNOWN, attemptDir: directoryOf(file) };
    }
    throw new SystemFailure({
      what: `Cannot read GitLab's description of the job in "${file}" (JOB_RESPONSE_FILE)`,
      // The parser's words would quote the file, which holds tokens.
      cause: cause instanceof SyntaxError ? new SyntaxError("it is not JSON") : cause,
      advice: "Use GitLab Runner 14.1 or newer, and give this user read access to its files",
    });
  }
}

async function parseJobResponse(json: string, file: string): Promise<Identity> {
  const { id, job_info: info, runner_info: runner, git_info: git, services } = JSON.parse(json) ??
    {};
  if (!Number.isSafeInteger(id) || id <= 0 || typeof info?.project_name !== "string") {
    throw new TypeError("it has no id or no job_info.project_name");
  }
  const timeout = runner?.timeout;
  const attempt = JSON.stringify([directoryOf(file), info.project_id, serverOf(git?.repo_url)]);
  return {
    machine: await machineName([info.project_name, "", String(id)], attempt),
    id: String(id),
    project: String(info.project_full_path ?? info.project_name),
    isProtected: git?.protected === true, // a GitLab that does not say grants nothing
    services: serviceNames(services),
    timeoutSeconds: Number.isSafeInteger(timeout) && timeout > 0 ? timeout : null,
    attemptDir: directoryOf(file),
  };
}

function serviceNames(services: unknown): string[] {
  if (!Array.isArray(services)) return [];
  return services.map((service) => service?.name).filter((name) => typeof name === "string");
}

/** The host of GitLab's clone URL; the rest of the URL holds a token. */
function serverOf(repoUrl: unknown): string {
  return typeof repoUrl === "string" && URL.canParse(repoUrl) ? new URL(repoUrl).host : "";
}
