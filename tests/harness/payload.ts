// SPDX-License-Identifier: GPL-2.0-or-later

/** A variable of a job; a file variable reaches the script as the path of a file. */
export interface JobVariable {
  readonly key: string;
  readonly value: string;
  readonly file?: boolean;
}

/** A job, as its author and GitLab describe it. */
export interface Job {
  readonly id: number;
  readonly projectId: number;
  readonly projectName: string;
  readonly projectFullPath: string;
  readonly isRefProtected: boolean;
  /** The author's; they follow GitLab's own, so they win. Nothing expands them. */
  readonly variables: readonly JobVariable[];
  /** `before_script` and `script`. */
  readonly script: readonly string[];
  readonly afterScript?: readonly string[];
  /** Further steps by name: `release` is the stage step_release. */
  readonly steps?: Readonly<Record<string, readonly string[]>>;
  readonly image?: string;
  readonly services?: readonly { readonly name: string; readonly alias?: string }[];
}

/** A job that echoes "hi" in an empty project directory. Spread it to make others. */
export const SMALL_JOB: Job = {
  id: 4242,
  projectId: 99,
  projectName: "proj",
  projectFullPath: "grp/proj",
  isRefProtected: false,
  variables: [],
  script: ["echo hi"],
};

const TIMEOUT_SECONDS = 3600;

/** Where a job's files are in the machine; empty until config has told. */
export interface Place {
  readonly buildsDir: string;
  readonly projectDir: string;
}

/** The text of response.json: the job, as GitLab sent it to the runner. */
export function responseJson(job: Job): string {
  return JSON.stringify({
    id: job.id,
    token: "job-token",
    job_info: {
      name: "test",
      stage: "test",
      project_id: job.projectId,
      project_name: job.projectName,
      project_full_path: job.projectFullPath,
    },
    git_info: { repo_url: "", ref: "main", sha: "", protected: job.isRefProtected },
    runner_info: { timeout: TIMEOUT_SECONDS },
    variables: variablesFromGitLab(job),
    steps: [
      step("script", job.script),
      ...Object.entries(job.steps ?? {}).map(([name, script]) => step(name, script)),
      ...(job.afterScript ? [step("after_script", job.afterScript)] : []),
    ],
    image: { name: job.image ?? "" },
    services: job.services ?? [],
    artifacts: [],
    cache: [],
    credentials: [],
    dependencies: [],
  }) + "\n";
}

/**
 * All variables of a job, in the runner's order: a later one wins. Those of the
 * runner itself stand around the author's, who can thus forge the first ones.
 */
export function jobVariables(job: Job, place: Place, status: string): JobVariable[] {
  const variables = [
    ...listOf({
      ...(job.image ? { CI_JOB_IMAGE: job.image } : {}),
      CI_BUILDS_DIR: place.buildsDir,
      CI_PROJECT_DIR: place.projectDir,
      CI_CONCURRENT_ID: "0",
      CI_CONCURRENT_PROJECT_ID: "0",
      CI_SERVER: "yes",
      CI_JOB_STATUS: "running",
      CI_JOB_TIMEOUT: String(TIMEOUT_SECONDS),
    }),
    ...variablesFromGitLab(job),
    ...listOf({
      CI_SHARED_ENVIRONMENT: "true",
      CI_RUNNER_VERSION: "19.3.0",
      RUNNER_TEMP_PROJECT_DIR: `${place.projectDir}.tmp`,
    }),
  ];
  if (status === "running") return variables;
  return variables.map((it) => it.key === "CI_JOB_STATUS" ? { key: it.key, value: status } : it);
}

/** The value of CI_JOB_SERVICES: JSON, or empty if there are none. */
export function servicesJson({ services = [] }: Job): string {
  if (services.length === 0) return "";
  return JSON.stringify(services.map(({ name, alias = "" }) => (
    { name, alias, entrypoint: null, command: null }
  )));
}

function variablesFromGitLab(job: Job): JobVariable[] {
  const own = listOf({
    CI_JOB_ID: String(job.id),
    CI_JOB_NAME: "test",
    CI_PROJECT_ID: String(job.projectId),
    CI_PROJECT_NAME: job.projectName,
    CI_PROJECT_PATH: job.projectFullPath,
    CI_COMMIT_REF_NAME: "main",
    CI_COMMIT_REF_PROTECTED: String(job.isRefProtected),
    GIT_STRATEGY: "none",
  });
  return [...own, ...job.variables];
}

function listOf(variables: Readonly<Record<string, string>>): JobVariable[] {
  return Object.entries(variables).map(([key, value]) => ({ key, value }));
}

function step(name: string, script: readonly string[]): Readonly<Record<string, unknown>> {
  const isLast = name === "after_script";
  const when = isLast ? "always" : "on_success";
  return { name, script, timeout: TIMEOUT_SECONDS, when, allow_failure: isLast };
}
