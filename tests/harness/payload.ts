// SPDX-License-Identifier: GPL-2.0-or-later
import { toText, type Value } from "./quote.ts";

/** A variable of a job; a file variable reaches the script as the path of a file. */
export interface JobVariable {
  readonly key: string;
  readonly value: Value;
  readonly file?: boolean;
}

/** A job's `cache:` or `artifacts:`. */
export interface Archive {
  readonly paths: readonly string[];
  /** "on_success" unless told. */
  readonly when?: "on_success" | "on_failure" | "always";
}

/** One of a job's `services:`. */
export interface Service {
  readonly name: string;
  readonly alias?: string;
  readonly entrypoint?: readonly string[];
  readonly command?: readonly string[];
  readonly variables?: readonly { readonly key: string; readonly value: string }[];
}

/** The commit that get_sources checks out. */
export interface Repository {
  /** An address for git; its path names the project directory if it has a host. */
  readonly url: string;
  readonly sha: string;
}

/** A job, as its author and GitLab describe it. */
export interface Job {
  readonly id: number;
  readonly name: string;
  readonly projectId: number;
  readonly projectName: string;
  readonly projectFullPath: string;
  readonly ref: string;
  readonly isRefProtected: boolean;
  /** The author's; they follow GitLab's own, so they win. Nothing expands them. */
  readonly variables: readonly JobVariable[];
  /** `before_script` and `script`. */
  readonly script: readonly string[];
  readonly afterScript?: readonly string[];
  /** Further steps by name: `release` is the stage step_release. */
  readonly steps?: Readonly<Record<string, readonly string[]>>;
  readonly image?: string;
  readonly services?: readonly Service[];
  /** Without one, GIT_STRATEGY is "none". */
  readonly repository?: Repository;
  readonly cache?: Archive;
  readonly artifacts?: Archive;
  /** Names of earlier jobs whose artifacts this one downloads. */
  readonly dependencies?: readonly string[];
  /** From the first attempt on, preparation included. */
  readonly timeoutSeconds: number;
}

/** A job that echoes "hi" in an empty project directory. Spread it to make others. */
export const SMALL_JOB: Job = {
  id: 4242,
  name: "test",
  projectId: 99,
  projectName: "proj",
  projectFullPath: "grp/proj",
  ref: "main",
  isRefProtected: false,
  variables: [],
  script: ["echo hi"],
  timeoutSeconds: 3600,
};

/** Where a job's files are in the machine; empty until config has told. */
export interface Place {
  readonly buildsDir: string;
  readonly cacheDir: string;
  readonly projectDir: string;
}

/** The text of response.json: the job, as GitLab sent it to the runner. */
export function responseJson(job: Job): string {
  const steps = [
    step("script", job.script),
    ...Object.entries(job.steps ?? {}).map(([name, script]) => step(name, script)),
    ...(job.afterScript ? [step("after_script", job.afterScript)] : []),
  ];
  return JSON.stringify({
    id: job.id,
    token: "job-token",
    job_info: {
      name: job.name,
      stage: "test",
      project_id: job.projectId,
      project_name: job.projectName,
      project_full_path: job.projectFullPath,
    },
    git_info: {
      repo_url: job.repository?.url ?? "",
      ref: job.ref,
      sha: job.repository?.sha ?? "",
      protected: job.isRefProtected,
    },
    runner_info: { timeout: job.timeoutSeconds },
    variables: variablesFromGitLab(job).map((it) => ({ ...it, value: toText(it.value) })),
    steps,
    image: { name: job.image ?? "" },
    services: job.services ?? [],
    artifacts: job.artifacts ? [job.artifacts] : [],
    cache: job.cache ? [job.cache] : [],
    credentials: [],
    dependencies: (job.dependencies ?? []).map((name, id) => ({ id, name, token: "token" })),
  }) + "\n";
}

/**
 * All variables of a job, in the runner's order: a later one wins. Those of the
 * runner itself stand around the author's, who can thus forge the first ones.
 */
export function jobVariables(job: Job, place: Place, status: string): JobVariable[] {
  const variables = listOf({
    ...(job.image ? { CI_JOB_IMAGE: job.image } : {}),
    CI_BUILDS_DIR: place.buildsDir,
    CI_PROJECT_DIR: place.projectDir,
    CI_CONCURRENT_ID: "0",
    CI_CONCURRENT_PROJECT_ID: "0",
    CI_SERVER: "yes",
    CI_JOB_STATUS: "running",
    CI_JOB_TIMEOUT: String(job.timeoutSeconds),
  });
  variables.push(...variablesFromGitLab(job));
  variables.push(...listOf({
    CI_SHARED_ENVIRONMENT: "true",
    CI_RUNNER_VERSION: "19.3.0",
    RUNNER_TEMP_PROJECT_DIR: `${place.projectDir}.tmp`,
  }));
  if (status === "running") return variables;
  return variables.map((it) => it.key === "CI_JOB_STATUS" ? { key: it.key, value: status } : it);
}

/** The value of CI_JOB_SERVICES: JSON, or empty if there are none. */
export function servicesJson(services: readonly Service[] = []): string {
  if (services.length === 0) return "";
  return JSON.stringify(services.map((service) => ({
    name: service.name,
    alias: service.alias ?? "",
    entrypoint: service.entrypoint ?? null,
    command: service.command ?? null,
    variables: service.variables &&
      Object.fromEntries(service.variables.map(({ key, value }) => [key, value])),
  })));
}

/** The project's directory below builds_dir. */
export function projectPath(job: Job): string {
  const url = URL.parse(job.repository?.url ?? "");
  if (!url?.host) return `project-${job.projectId}`;
  return decodeURIComponent(url.pathname).replace(/\.git$/, "").replace(/^\/+/, "");
}

/** The value that wins for this key, if there is one. */
export function lookupVariable(variables: readonly JobVariable[], key: string): string | null {
  const variable = variables.findLast((it) => it.key === key);
  return variable ? toText(variable.value) : null;
}

function variablesFromGitLab(job: Job): JobVariable[] {
  const own = listOf({
    CI_JOB_ID: String(job.id),
    CI_JOB_NAME: job.name,
    CI_PROJECT_ID: String(job.projectId),
    CI_PROJECT_NAME: job.projectName,
    CI_PROJECT_PATH: job.projectFullPath,
    CI_COMMIT_REF_NAME: job.ref,
    CI_COMMIT_REF_PROTECTED: String(job.isRefProtected),
    GIT_STRATEGY: job.repository ? "clone" : "none",
  });
  return [...own, ...job.variables];
}

function listOf(variables: Readonly<Record<string, string>>): JobVariable[] {
  return Object.entries(variables).map(([key, value]) => ({ key, value }));
}

function step(name: string, script: readonly string[]): Readonly<Record<string, unknown>> {
  const isLast = name === "after_script";
  return {
    name,
    script,
    timeout: 3600,
    when: isLast ? "always" : "on_success",
    allow_failure: isLast,
  };
}
