// SPDX-License-Identifier: GPL-2.0-or-later
import { compare, report } from "./measure.ts";
import { done } from "./program.ts";

/** How fast the program starts, beside an empty one that was compiled the same way. */
export async function measureVersion(program: readonly string[], runs: number): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-bench-" });
  try {
    const file = await emptyProgram(directory);
    if (file === null) return;
    const empty = [file];
    const { ours, theirs, ratio } = await compare(
      runs,
      () => done([...program, "--version"]),
      () => done(empty),
    );
    report(
      "--version",
      `${ours.toFixed(0)} ms, an empty program ${theirs.toFixed(0)} ms, ratio ${ratio.toFixed(2)}`,
      { goal: "1.2", met: ratio <= 1.2 },
    );
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** An empty program in this directory, compiled as ours is; says so and gives null if that fails. */
export async function emptyProgram(directory: string): Promise<string | null> {
  await Deno.writeTextFile(`${directory}/empty.js`, 'console.log("0.1.0");\n');
  const args = ["compile", "--quiet", "--no-check", "--no-code-cache", "-o", "empty", "empty.js"];
  const compiled = await new Deno.Command("deno", { args, cwd: directory }).output();
  if (compiled.success) return `${directory}/empty`;
  console.log("No empty program could be compiled to compare with");
  return null;
}
