// SPDX-License-Identifier: GPL-2.0-or-later
import { childrenOf, find, rootOf } from "../../src/read_xml.ts";

/** What `deno test --junit-path` writes, without the steps of tests. */
export interface TestReport {
  readonly passed: number;
  readonly ignored: number;
  readonly failures: readonly Failure[];
}

/** A test that failed. */
export interface Failure {
  readonly name: string;
  /** Its errors, and those of its steps. */
  readonly text: string;
}

/**
 * Reads what `deno test` wrote, where a test is with the file whose function registered it, and a step is
 * one more test, `TEST > STEP`.
 */
export function readTestReport(xml: string): TestReport {
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
