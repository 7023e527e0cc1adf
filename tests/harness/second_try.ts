// SPDX-License-Identifier: GPL-2.0-or-later
import { childrenOf, find, rootOf } from "../../src/read_xml.ts";

/** How many tests may pass at the second try only: more are no chance. */
const MOST_FLAKY = 2;
const END_LINES = 25;

/** How tests ended, those that passed at the second try among the passed. */
export interface Tries {
  readonly passed: number;
  readonly failed: number;
  readonly ignored: number;
  readonly flaky: readonly string[];
}

/** What {@linkcode runWithSecondTry} needs besides the files. */
export interface SecondTryOptions {
  /** Makes anew what tests work on, before a second try. */
  readonly reset: () => Promise<void>;
  readonly log: (text: string) => void;
  /** Where the first try's output goes. */
  readonly output?: "inherit" | "null";
}

/**
 * Runs these files of tests by `deno test`. A test that fails runs once more, by itself, and if it passes
 * then, it is reported as flaky, with the ends of both outputs, and does not count as failed: an emulated
 * guest stands still at times. If more than two tests fail, none runs again.
 */
export async function runWithSecondTry(
  files: readonly string[],
  { reset, log, output = "inherit" }: SecondTryOptions,
): Promise<Tries> {
  const first = await denoTest(files, [], output);
  const { passed, failures, ignored } = first.report;
  if (failures.length > MOST_FLAKY) {
    log(`${failures.length} tests failed, so none gets a second try`);
    return { passed, failed: failures.length, ignored, flaky: [] };
  }
  const flaky: string[] = [];
  for (const { name, text } of failures) {
    log(`\nThis test failed, and runs once more by itself: ${name}`);
    await reset();
    const exactly = `/^${name.replace(/[/\\^$.*+?()[\]{}|]/g, "\\$&")}$/`;
    const second = await denoTest(files, ["--filter", exactly], "piped");
    const passes = second.success && second.report.passed === 1;
    if (passes) flaky.push(name);
    log(`${passes ? "flaky" : "FAILED twice"}: ${name}`);
    log(endOf("The first time it ended with", text));
    log(endOf("The second time it ended with", second.output));
  }
  const failed = failures.length - flaky.length;
  return { passed: passed + flaky.length, failed, ignored, flaky };
}

async function denoTest(
  files: readonly string[],
  options: readonly string[],
  output: "inherit" | "piped" | "null",
): Promise<{ readonly success: boolean; readonly output: string; readonly report: TestReport }> {
  const junit = await Deno.makeTempFile({ prefix: "libvirt-gci-junit-" });
  try {
    const process = new Deno.Command(Deno.execPath(), {
      args: ["test", "--allow-all", `--junit-path=${junit}`, ...options, ...files],
      env: { NO_COLOR: "1" },
      stdin: "null",
      stdout: output,
      stderr: output,
    }).spawn();
    const read = (stream: "stdout" | "stderr") => output === "piped" ? process[stream].text() : "";
    const [{ success }, ...texts] = await Promise.all([
      process.status,
      read("stdout"),
      read("stderr"),
    ]);
    const xml = await Deno.readTextFile(junit);
    const report = xml === "" ? null : readTestReport(xml);
    if (report === null || !success && report.failures.length === 0) {
      throw new Error(`deno test failed, and names no test that did\n${texts.join("")}`);
    }
    return { success, output: texts.join(""), report };
  } finally {
    await Deno.remove(junit);
  }
}

/** What `deno test --junit-path` writes, without the steps of tests. */
interface TestReport {
  readonly passed: number;
  readonly ignored: number;
  readonly failures: readonly Failure[];
}

/** A test that failed. */
interface Failure {
  readonly name: string;
  /** Its errors, and those of its steps. */
  readonly text: string;
}

/**
 * Reads what `deno test` wrote, where a test is with the file whose function registered it, and a step is
 * one more test, `TEST > STEP`.
 */
function readTestReport(xml: string): TestReport {
  // XML has none of these. A test may have printed them, and Deno 2.7 leaves them in.
  // deno-lint-ignore no-control-regex
  const root = rootOf(xml.replace(/[\x00-\x08\x0b-\x1f\ufffe\uffff]/g, "\ufffd"));
  const all = childrenOf(root, "testsuite").flatMap((it) => childrenOf(it, "testcase"))
    .map((element) => ({
      name: element.attributes["name"] ?? "",
      failure: find(element, "failure")?.text,
      isIgnored: find(element, "skipped") !== undefined,
    }));
  const isStepOf = (step: string, test: string): boolean => step.startsWith(`${test} > `);
  const tests = all.filter(({ name }) => !all.some((other) => isStepOf(name, other.name)));
  const failures = tests.filter(({ failure }) => failure !== undefined).map(({ name, failure }) => {
    const steps = all.filter((it) => it.failure !== undefined && isStepOf(it.name, name));
    return { name, text: [failure, ...steps.map((it) => `${it.name}: ${it.failure}`)].join("\n") };
  });
  const ignored = tests.filter(({ isIgnored }) => isIgnored).length;
  return { passed: tests.length - failures.length - ignored, ignored, failures };
}

function endOf(title: string, text: string): string {
  const lines = text.trim().split("\n").slice(-END_LINES);
  return [`${title}:`, ...lines.map((line) => `  | ${line}`)].join("\n");
}
