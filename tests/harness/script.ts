// SPDX-License-Identifier: GPL-2.0-or-later
import type { Job, JobVariable, Place } from "./payload.ts";

/** What the scripts of a job are made from. */
export interface ScriptSource {
  readonly job: Job;
  readonly variables: readonly JobVariable[];
  readonly place: Place;
  /** "bash" or "sh". */
  readonly shell: string;
}

/** The script of a stage, or null if it has nothing to do. */
export function scriptFor(stage: string, source: ScriptSource): string | null {
  const body = bodyOf(stage, source);
  return body && frame(body, source.shell);
}

function bodyOf(stage: string, source: ScriptSource): string[] | null {
  const { job, variables, place } = source;
  const { projectDir } = place;
  switch (stage) {
    case "prepare_script":
      return ['echo "Running on $(hostname)..."'];
    case "get_sources":
      return [
        ...exports(source),
        notice("Skipping Git repository setup"),
        command("mkdir", "-p", projectDir),
      ];
    case "build_script":
      return userScript(source, job.script);
    case "after_script":
      return job.afterScript ? userScript(source, job.afterScript) : null;
    case "cleanup_file_variables":
      return ["gitlab_runner_env", ...variables.filter(({ file }) => file).map(({ key }) => key)]
        .map((name) => command("rm", "-f", tmpFile(place, name)));
    default:
      return userScript(source, job.steps?.[stage.replace(/^step_/, "")] ?? []);
  }
}

/** The runner's frame around the lines of a body. */
function frame(body: readonly string[], shell: string): string {
  const text = body.map((line) => `${line}\n`).join("");
  return `#!/usr/bin/env ${shell}

trap 'exit 1' TERM

case "$(set -o)" in *"pipefail"*) set -o pipefail;; esac; set -o errexit
set +o noclobber
(trap 'exit 1' TERM; eval ${quote(text)}) < /dev/null
exit 0
`;
}

function userScript(source: ScriptSource, script: readonly string[]): string[] {
  return [
    ...exports(source),
    command("cd", source.place.projectDir),
    ...script.flatMap(withNotice),
  ];
}

function exports({ variables, place }: ScriptSource): string[] {
  const environment = JSON.stringify(tmpFile(place, "gitlab_runner_env"));
  const makeTmpDir = `mkdir -p ${JSON.stringify(`${place.projectDir}.tmp`)}`;
  return [
    ...variables.flatMap(({ key, value, file }) => {
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

/** A command of the job, after its first line has been shown. */
function withNotice(text: string): string[] {
  const line = text.trim();
  const [first = "", ...more] = line.split("\n");
  return [notice(`$ ${first}${more.length > 0 ? " # collapsed multi-line command" : ""}`), line];
}

function tmpFile(place: Place, name: string): string {
  return `${place.projectDir}.tmp/${name}`;
}

function notice(text: string): string {
  return command("echo", `\x1b[32;1m${text}\x1b[0;m`);
}

function command(...words: readonly string[]): string {
  return words.map(quote).join(" ");
}

/**
 * A word for bash, itself ASCII without newlines: as it is if no byte is special, else in ANSI-C quotes,
 * the way GitLab Runner quotes. Unlike what `src/shell.ts` writes, a whole script is one line so.
 */
function quote(text: string): string {
  if (/^[\w,./@-]+$/.test(text)) return text;
  const bytes = Array.from(new TextEncoder().encode(text), (byte) => {
    const isPlain = byte >= 0x20 && byte < 0x7f && byte !== 0x27 && byte !== 0x5c; // no ' and \
    return isPlain ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, "0")}`;
  });
  return `$'${bytes.join("")}'`;
}
