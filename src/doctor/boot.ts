// SPDX-License-Identifier: GPL-2.0-or-later
import type { GroupedFinding } from "./doctor.ts";
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

/** What jobs call in the guest, and what happens without it. */
const PROGRAMS = {
  "git": { finding: problem, meaning: "A job cannot get its sources" },
  "gitlab-runner": {
    finding: warning,
    meaning: "A job's caches and artifacts are left out, without an error",
  },
} as const;

const SCRIPT = `for program in ${Object.keys(PROGRAMS).join(" ")}; do
  command -v "$program" >/dev/null || echo "missing $program"
done
`;

/** Runs a whole job on a machine with this template, and says what each stage took. It never throws. */
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
    .map(([program, { finding, meaning }]) =>
      finding(`The template "${template}" has no ${program}`, {
        meaning: `${meaning}. Install ${program} in the template`,
      })
    );
}
