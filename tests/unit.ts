// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * Runs the unit tests: `deno run --allow-all tests/unit.ts [OPTION OF DENO TEST...]`. They wait more
 * than half of their time, so three groups of them run at once on two cores. A group is a process, since
 * many tests look at what a process has once: descriptors, threads, memory, libvirt's library. The output
 * of a file's tests is in one piece, and the last line is as that of `deno test`. `deno check` checks the
 * types.
 */

/** Each takes about as long as all other tests, which are the third group. */
const FIRST = ["tests/commands", "tests/guest"];
const SECOND = ["tests/image", "tests/machine"];
const GROUPS = [FIRST, SECOND, ["tests", `--ignore=${["tests/e2e", ...FIRST, ...SECOND].join()}`]];

/** How a group ended, by its status and its last line. */
interface Ended {
  readonly success: boolean;
  readonly passed: number;
  readonly failed: number;
  readonly ignored: number;
}

async function denoTest(paths: readonly string[]): Promise<Ended> {
  const process = new Deno.Command(Deno.execPath(), {
    args: ["test", "--v8-flags=--expose-gc", "--allow-all", "--no-check", ...paths, ...Deno.args],
    cwd: new URL("..", import.meta.url),
    stdin: "null",
    stdout: "piped",
  }).spawn();
  let held = "";
  for await (const text of process.stdout.pipeThrough(new TextDecoderStream())) {
    held += text;
    const next = held.lastIndexOf("\nrunning "); // tests of the next file
    if (next === -1) continue;
    console.log(held.slice(0, next));
    held = held.slice(next + 1);
  }
  console.log(held);
  const end = held.match(/^(ok|FAILED) \| \d+ passed.*$/gm)?.at(-1) ?? "";
  const count = (what: string) => Number(new RegExp(`(\\d+) ${what}`).exec(end)?.[1] ?? 0);
  const { success } = await process.status;
  return { success, passed: count("passed"), failed: count("failed"), ignored: count("ignored") };
}

const start = performance.now();
const groups = await Promise.all(GROUPS.map(denoTest));
const sum = (what: "passed" | "failed" | "ignored") =>
  groups.reduce((total, group) => total + group[what], 0);
const success = groups.every((group) => group.success);
const seconds = Math.round((performance.now() - start) / 1000);
console.log(
  `${success ? "ok" : "FAILED"} | ${sum("passed")} passed | ${sum("failed")} failed | ` +
    `${sum("ignored")} ignored (${seconds}s)`,
);
Deno.exitCode = success ? 0 : 1;
