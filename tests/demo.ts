// SPDX-License-Identifier: GPL-2.0-or-later

/** Runs one GitLab job in a virtual machine, as GitLab Runner does, and shows each step. */

import { PROGRAM, settingsFile } from "./e2e/bed.ts";
import { SMALL_JOB } from "./harness/payload.ts";
import { runJob, runnerFor } from "./harness/runner.ts";

const start = performance.now();
const STAGES: Readonly<Record<string, string>> = {
  config: "tells GitLab Runner where the job's files go and what its machine is called",
  prepare: "starts a throw-away machine and waits until it can be logged in to",
  cleanup: "removes the machine and its disk",
};

/** Prints what a stage prints, indented, as it comes. */
function show(bytes: Uint8Array): void {
  const text = new TextDecoder().decode(bytes).trimEnd();
  for (const line of text.split("\n")) console.log(`    ${line}`);
}

/** Runs the job and gives the exit status. */
async function demo(): Promise<number> {
  using file = settingsFile();
  const runner = runnerFor(PROGRAM, ["--config", file.path], {
    onOutput: (stage, _stream, bytes) => {
      if (stage !== "config") show(bytes);
    },
    onStage: ({ name, seconds, exitStatus }) => {
      const what = STAGES[name] ?? "one of the job's scripts, in the machine";
      console.log(`  ${name}: ${seconds.toFixed(1)} s, exit status ${exitStatus} (${what})\n`);
    },
  });
  console.log(`\nA GitLab job runs in a virtual machine: ${PROGRAM.join(" ")}\n`);
  const result = await runJob(runner, {
    ...SMALL_JOB,
    variables: [{ key: "DISTRO", value: "lite" }],
    script: ["uname -sr", 'echo "Hello from $(hostname)" | tee greeting'],
    afterScript: ["cat greeting"],
  });
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  console.log(`The job ended after ${seconds} s with: ${result.verdict} ${result.reason}`);
  return result.verdict === "success" ? 0 : 1;
}

Deno.exit(await demo());
