// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * Runs one GitLab job in a virtual machine, as GitLab Runner does, and shows each step: with the program
 * that users install, or where it cannot be compiled, with main.ts.
 */

import { KVM, PROGRAM, settingsFile } from "./e2e/bed.ts";
import { SMALL_JOB } from "./harness/payload.ts";
import { runJob, runnerFor } from "./harness/runner.ts";

const ROOT = new URL("..", import.meta.url).pathname;
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

/** Runs Deno, of which nothing is shown. */
async function quietly(...args: readonly string[]): Promise<boolean> {
  const options = { stdin: "null", stdout: "null", stderr: "null" } as const;
  return (await new Deno.Command(Deno.execPath(), { args: [...args], cwd: ROOT, ...options })
    .output())
    .success;
}

/** The program, and what it is. */
async function chooseProgram(): Promise<readonly [program: readonly string[], what: string]> {
  if (Deno.env.has("LIBVIRT_GCI")) return [PROGRAM, "the compiled program"];
  if (await quietly("run", "--allow-all", "packaging/compile.ts")) {
    return [[`${ROOT}build/libvirt-gci`], "the program that you install, compiled just now"];
  }
  await quietly("cache", "main.ts"); // or each stage would load its packages
  return [PROGRAM, "main.ts, since it was not compiled: deno task compile says why"];
}

/** Runs the job and gives the exit status. */
async function demo(): Promise<number> {
  using file = settingsFile();
  const [program, what] = await chooseProgram();
  const runner = runnerFor(program, ["--config", file.path], {
    onOutput: (stage, _stream, bytes) => {
      if (stage !== "config") show(bytes);
    },
    onStage: ({ name, seconds, exitStatus }) => {
      const what = STAGES[name] ?? "one of the job's scripts, in the machine";
      console.log(`  ${name}: ${seconds.toFixed(1)} s, exit status ${exitStatus} (${what})\n`);
    },
  });
  console.log(`\nA GitLab job runs in a virtual machine, by ${program.join(" ")}\n(${what})\n`);
  if (!KVM.works) {
    console.log(
      `KVM does not work here, so the machine is emulated, which is slow: ${KVM.reason}\n`,
    );
  }
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
