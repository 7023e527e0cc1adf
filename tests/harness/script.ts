// SPDX-License-Identifier: GPL-2.0-or-later
import { type Archive, type Job, type JobVariable, lookupVariable, type Place } from "./payload.ts";
import { quote } from "./quote.ts";

/** What the scripts of a job are made from. */
export interface ScriptSource {
  readonly job: Job;
  readonly variables: readonly JobVariable[];
  readonly place: Place;
  /** "bash" or "sh". */
  readonly shell: string;
  /** Where the guest says it runs, as config named it. */
  readonly hostname?: string;
}

type Moment = "on_success" | "on_failure";

type Writer = (source: ScriptSource) => readonly string[] | null;

const STAGES: Readonly<Record<string, Writer>> = {
  prepare_script: writePrepare,
  get_sources: writeGetSources,
  clear_worktree: writeClearWorktree,
  restore_cache: (source) => source.job.cache ? writeCache(source, "cache-extractor") : null,
  download_artifacts: writeDownloadArtifacts,
  build_script: (source) => writeUserScript(source, source.job.script),
  after_script: writeAfterScript,
  archive_cache: (source) => writeArchiveCache(source, "on_success"),
  archive_cache_on_failure: (source) => writeArchiveCache(source, "on_failure"),
  upload_artifacts_on_success: (source) => writeUploadArtifacts(source, "on_success"),
  upload_artifacts_on_failure: (source) => writeUploadArtifacts(source, "on_failure"),
  cleanup_file_variables: writeCleanupFileVariables,
};

/** The script of a stage, or null if it has nothing to do. */
export function scriptFor(stage: string, source: ScriptSource): string | null {
  const write = STAGES[stage] ?? ((it) => writeStep(it, stage));
  const body = write(source);
  return body && frame(body, source.shell);
}

/** The runner's frame around the lines of a body. */
export function frame(body: readonly string[], shell: string): string {
  const text = body.map((line) => `${line}\n`).join("");
  return `#!/usr/bin/env ${shell}

trap 'exit 1' TERM

case "$(set -o)" in *"pipefail"*) set -o pipefail;; esac; set -o errexit
set +o noclobber
(trap 'exit 1' TERM; eval ${quote(text)}) < /dev/null
exit 0
`;
}

function writePrepare({ hostname }: ScriptSource): string[] {
  // In double quotes, so that the guest's shell takes what the driver said.
  const via = hostname ? ` via ${hostname}` : "";
  return [`echo ${JSON.stringify(`Running on $(hostname)${via}...`)}`];
}

function writeGetSources(source: ScriptSource): string[] {
  const { job, variables, place: { projectDir } } = source;
  const strategy = lookupVariable(variables, "GIT_STRATEGY");
  const begin = [
    ...exports(source),
    "export GIT_TERMINAL_PROMPT=0",
    "export GIT_LFS_SKIP_SMUDGE=1",
  ];
  if (strategy === "none" || strategy === "empty") {
    return [
      ...begin,
      notice("Skipping Git repository setup"),
      ...(strategy === "empty" ? [command("rm", "-r", "-f", projectDir)] : []),
      command("mkdir", "-p", projectDir),
      notice("Skipping Git checkout"),
      notice("Skipping Git submodules setup"),
    ];
  }
  const { url = "", sha = "" } = job.repository ?? {};
  const addRemote = command("git", "remote", "add", "origin", url);
  return [
    ...begin,
    notice("Fetching changes..."),
    ...(strategy === "fetch" ? [] : [command("rm", "-r", "-f", projectDir)]),
    command("git", "init", "-q", projectDir),
    command("cd", projectDir),
    `if ${addRemote} >/dev/null 2>&1; then`,
    notice("Created fresh repository."),
    "else",
    command("git", "remote", "set-url", "origin", url),
    "fi",
    command(
      "git",
      "fetch",
      "-q",
      "origin",
      `+refs/heads/${job.ref}:refs/remotes/origin/${job.ref}`,
    ),
    notice(`Checking out ${sha.slice(0, 8)} as detached HEAD (ref is ${job.ref})...`),
    command("git", "checkout", "-f", "-q", sha),
    command("git", "clean", "-ffdx"),
    notice("Skipping Git submodules setup"),
  ];
}

function writeClearWorktree({ place: { projectDir } }: ScriptSource): string[] {
  return [
    notice("Deleting tracked and untracked files..."),
    `if [ -d ${JSON.stringify(projectDir)} ]; then`,
    command("cd", projectDir),
    command("git", "rm", "-rf", "--ignore-unmatch", "."),
    command("git", "clean", "-ffdx"),
    "fi",
  ];
}

function writeUserScript(source: ScriptSource, script: readonly string[]): string[] {
  return [...exportsAndCd(source), ...script.flatMap(writeCommand)];
}

function writeStep(source: ScriptSource, stage: string): string[] | null {
  const script = source.job.steps?.[stage.replace(/^step_/, "")];
  return script ? writeUserScript(source, script) : null;
}

function writeAfterScript(source: ScriptSource): string[] | null {
  const script = source.job.afterScript ?? [];
  if (script.length === 0) return null;
  return [
    ...exportsAndCd(source),
    notice("Running after script..."),
    ...script.flatMap(writeCommand),
  ];
}

function writeDownloadArtifacts(source: ScriptSource): string[] | null {
  const names = source.job.dependencies ?? [];
  if (names.length === 0) return null;
  return [
    ...exportsAndCd(source),
    ...guardRunner(
      "Artifacts downloading",
      names.flatMap((name) => [
        notice(`Downloading artifacts for ${name}...`),
        command("gitlab-runner", "artifacts-downloader", "--token", "job-token"),
      ]),
    ),
  ];
}

function writeArchiveCache(source: ScriptSource, moment: Moment): string[] | null {
  return isDue(source.job.cache, moment) ? writeCache(source, "cache-archiver") : null;
}

function writeCache(source: ScriptSource, helper: string): string[] {
  const paths = (source.job.cache?.paths ?? []).flatMap((path) => ["--path", path]);
  return [
    ...exportsAndCd(source),
    ...guardRunner(helper, [
      `if ${command("gitlab-runner", helper, ...paths)}; then`,
      notice(`${helper} succeeded`),
      "else",
      warning(`${helper} failed`), // A cache that fails is no failure.
      "fi",
    ]),
  ];
}

function writeUploadArtifacts(source: ScriptSource, moment: Moment): string[] | null {
  const { artifacts } = source.job;
  if (!artifacts || !isDue(artifacts, moment)) return null;
  const paths = artifacts.paths.flatMap((path) => ["--path", path]);
  return [
    ...exportsAndCd(source),
    ...guardRunner("Uploading artifacts", [
      notice("Uploading artifacts..."),
      command("gitlab-runner", "artifacts-uploader", ...paths),
    ]),
  ];
}

function isDue(archive: Archive | undefined, moment: Moment): boolean {
  const when = archive?.when ?? "on_success";
  return archive !== undefined && (when === "always" || when === moment);
}

function writeCleanupFileVariables({ variables, place }: ScriptSource): string[] {
  return ["gitlab_runner_env", ...variables.filter(({ file }) => file).map(({ key }) => key)]
    .map((name) => command("rm", "-f", tmpFile(place, name)));
}

function exportsAndCd(source: ScriptSource): string[] {
  return [...exports(source), command("cd", source.place.projectDir)];
}

function exports({ variables, place }: ScriptSource): string[] {
  const environment = JSON.stringify(tmpFile(place, "gitlab_runner_env"));
  const makeTmpDir = `mkdir -p ${JSON.stringify(`${place.projectDir}.tmp`)}`;
  return [
    ...variables.flatMap((variable) => {
      const { key, value, file } = variable;
      if (!file) return [`export ${quote(key)}=${quote(value)}`];
      const path = JSON.stringify(tmpFile(place, key));
      return [makeTmpDir, `printf '%s' ${quote(value)} > ${path}`, `export ${quote(key)}=${path}`];
    }),
    `export GITLAB_ENV=${environment}`,
    makeTmpDir,
    `touch ${environment}`,
    `while read -r line; do export "$line"; done < ${environment}`,
  ];
}

function writeCommand(text: string): string[] {
  const line = text.trim();
  if (line === "") return ["echo", ""];
  const [first = "", ...more] = line.split("\n");
  return [notice(`$ ${first}${more.length > 0 ? " # collapsed multi-line command" : ""}`), line];
}

function guardRunner(action: string, lines: readonly string[]): string[] {
  return [
    "if gitlab-runner --version >/dev/null 2>&1; then",
    ...lines,
    "else",
    warning(`Missing gitlab-runner. ${action} is disabled.`),
    "fi",
  ];
}

function tmpFile(place: Place, name: string): string {
  return `${place.projectDir}.tmp/${name}`;
}

function notice(text: string): string {
  return `echo ${quote(`\x1b[32;1m${text}\x1b[0;m`)}`;
}

function warning(text: string): string {
  return `echo ${quote(`\x1b[0;33m${text}\x1b[0;m`)}`;
}

function command(...words: readonly string[]): string {
  return words.map(quote).join(" ");
}
