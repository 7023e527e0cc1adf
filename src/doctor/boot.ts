// SPDX-License-Identifier: GPL-2.0-or-later
import type { GroupedFinding } from "./checks.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";
import { explain } from "../errors.ts";

/** The stages of a job on a machine of the caller's choice. */
export interface BootStages {
  /** Makes the machine. If it fails, it has undone what it did. */
  readonly prepare: () => Promise<void>;
  /** Runs the script in the machine and gives what it wrote to stdout. */
  readonly run: (script: string) => Promise<string>;
  readonly cleanup: () => Promise<void>;
}

/** The programs that jobs call in the guest: what fails without one, and how to install it. */
const PROGRAMS = {
  "git": {
    finding: problem,
    meaning: "Jobs cannot get their sources",
    remedy: "Install it in the VM that the template was created from",
  },
  "gitlab-runner": {
    finding: warning,
    meaning: "Jobs run without artifacts and caches",
    remedy: "Copy the host's gitlab-runner to /usr/local/bin in the VM of the template",
  },
} as const;

/** Asks as GitLab Runner's own scripts do: a program that does not run counts as missing. */
const SCRIPT = `for program in ${Object.keys(PROGRAMS).join(" ")}; do
  "$program" --version >/dev/null 2>&1 || echo "missing $program"
done
`;

/** Runs a whole job on a machine with this template, and times each stage. It never throws. */
export async function bootTemplate(
  template: string,
  { prepare, run, cleanup }: BootStages,
): Promise<GroupedFinding[]> {
  const findings: Finding[] = [];
  const attempt = async (stage: string, body: () => Promise<void>): Promise<boolean> => {
    const start = performance.now();
    const seconds = (): string => `${((performance.now() - start) / 1000).toFixed(1)} s`;
    try {
      await body();
      findings.push(ok(`${stage}: ${seconds()}`));
      return true;
    } catch (error) {
      findings.push(
        problem(`${stage} failed after ${seconds()}`, { meaning: explain(error) }),
      );
      return false;
    }
  };
  if (await attempt("prepare", prepare)) {
    let missing: Finding[] = [];
    await attempt("run", async () => {
      missing = missingPrograms(template, await run(SCRIPT));
    });
    findings.push(...missing);
    await attempt("cleanup", cleanup);
  }
  return findings.map((finding) => ({ group: `a job on "${template}"`, ...finding }));
}

function missingPrograms(template: string, output: string): Finding[] {
  const lines = output.split("\n");
  return Object.entries(PROGRAMS)
    .filter(([program]) => lines.includes(`missing ${program}`))
    .map(([program, { finding, meaning, remedy }]) =>
      finding(`The template "${template}" has no working ${program}`, {
        meaning:
          `${meaning}. ${remedy}, then create the template again: make_base_image.sh --replace VM`,
      })
    );
}
