// SPDX-License-Identifier: GPL-2.0-or-later
import type { DoctorContext } from "./check.ts";
import { type Finding, type Found, listFindings, ok, problem, warning } from "./finding.ts";
import { readHostFile, statHostFile } from "./host_files.ts";
import { registerCommand, STAGE_ARGS } from "./register_command.ts";
import { EDIT, FILE, parseRunnerConfig, type Runner, type RunnerConfig } from "./runner_config.ts";
import { checkMemory, checkTimeouts } from "./runner_limits.ts";

export const group = { name: "GitLab Runner", checks: [checkRunner] };

const STAGES = ["config", "prepare", "run", "cleanup"] as const;

export async function checkRunner(context: DoctorContext): Promise<Found> {
  const config = await readRunnerConfig(context);
  if ("level" in config) return config;
  const runners = config.runners.filter(callsUs);
  if (runners.length === 0) {
    return warning(`No runner in ${FILE} calls libvirt-gci`, {
      meaning:
        "This host gets no jobs for libvirt-gci, unless a program with another name calls it",
      remedy: registerCommand(context.program),
    });
  }
  return [
    await Promise.all(runners.map((runner) => checkOne(runner, context))),
    await checkMemory({ concurrent: config.concurrent, runners }, context),
  ];
}

/** A section without a program counts as ours. A wrapper has our name in its own. */
function callsUs({ executor, custom }: Runner): boolean {
  const programs = STAGES.map((stage) => custom[`${stage}_exec`]).filter((path) => path !== "");
  const isOurs = programs.length === 0 || programs.some((path) => /libvirt-gci[^/]*$/.test(path));
  return executor === "custom" && isOurs;
}

async function readRunnerConfig(context: DoctorContext): Promise<RunnerConfig | Finding> {
  try {
    const toml = await readHostFile(context, FILE);
    if (toml !== null) return parseRunnerConfig(toml);
    return warning(`${FILE} does not exist`, {
      meaning: "This host gets no jobs from GitLab, unless its runner's settings are elsewhere",
      remedy: registerCommand(context.program),
    });
  } catch (error) {
    if (error instanceof Deno.errors.PermissionDenied) {
      return warning(`This user cannot read ${FILE}`, {
        meaning: "GitLab Runner's settings are not checked. Run libvirt-gci doctor as root",
      });
    }
    if (!(error instanceof SyntaxError)) throw error;
    return problem(`GitLab Runner cannot read ${FILE}`, {
      meaning: `${error.message}. It takes no jobs, or keeps the settings that it read before`,
      remedy: EDIT,
    });
  }
}

async function checkOne(runner: Runner, context: DoctorContext): Promise<Finding[]> {
  const findings = listFindings([
    await Promise.all(STAGES.map((stage) => checkProgram(stage, runner, context))),
    checkDirectories(runner, context),
    checkTimeouts(runner, context),
  ]);
  if (findings.length > 0) return findings;
  return [ok(`The runner "${runner.name}" calls libvirt-gci for each stage`)];
}

async function checkProgram(
  stage: typeof STAGES[number],
  { name, custom }: Runner,
  context: DoctorContext,
): Promise<Finding | null> {
  const program = custom[`${stage}_exec`];
  if (program === "") return stage === "config" ? null : unsetProgram(stage, name, context);
  const info = await statHostFile(context, program);
  if (info === null || ((info.mode ?? 0) & 0o111) === 0) {
    return problem(`The runner "${name}" cannot run "${program}", its ${stage}_exec`, {
      meaning: info === null ? "The file does not exist, so every job fails" : "Every job fails",
      remedy: info === null ? EDIT : `chmod +x ${program}`,
    });
  }
  if (!/libvirt-gci$/.test(program) || custom[`${stage}_args`].includes(stage)) return null;
  return problem(`The ${stage}_args of the runner "${name}" lack the command "${stage}"`, {
    meaning: "Every job fails",
    remedy: `${EDIT} # ${argsLine(stage)}`,
  });
}

function unsetProgram(
  stage: "prepare" | "run" | "cleanup",
  name: string,
  context: DoctorContext,
): Finding {
  return problem(`The runner "${name}" has no ${stage}_exec`, {
    meaning: stage === "cleanup"
      ? "Machines stay after their jobs, until gc removes them"
      : "Every job fails",
    remedy: callRemedy(stage, context),
  });
}

/** Without config_exec, config.toml has to set the directories. */
function checkDirectories(
  { name, builds_dir, cache_dir, custom }: Runner,
  context: DoctorContext,
): Finding | null {
  if (custom.config_exec !== "" || (builds_dir !== "" && cache_dir !== "")) return null;
  return problem(`The runner "${name}" has neither config_exec nor builds_dir and cache_dir`, {
    meaning: "GitLab Runner does not know where to build in the guest, so every job fails",
    remedy: callRemedy("config", context),
  });
}

function callRemedy(stage: typeof STAGES[number], { program }: DoctorContext): string {
  return `${EDIT} # ${stage}_exec = "${program}", ${argsLine(stage)}`;
}

function argsLine(stage: typeof STAGES[number]): string {
  return `${stage}_args = [${STAGE_ARGS[stage].map((arg) => `"${arg}"`).join(", ")}]`;
}
