// SPDX-License-Identifier: GPL-2.0-or-later
import { noPaint, type Paint } from "../cli/printer.ts";
import type { GroupedFinding } from "./checks.ts";
import type { Level } from "./finding.ts";
import { SystemFailure } from "../errors.ts";
import { toVisible } from "../quoted.ts";

const MARK_WIDTH = "problem".length + 2;
const INDENT = " ".repeat(MARK_WIDTH + 2);
const WIDTH = 88;

const LEVEL_COLOURS = { ok: "green", warning: "yellow", problem: "red" } as const;

/** The findings for people: a line each, then what it means and what fixes it. */
export function findingsText(findings: readonly GroupedFinding[], paint: Paint = noPaint): string {
  const lines: string[] = [];
  for (const [group, itsFindings] of Map.groupBy(findings, ({ group }) => group)) {
    lines.push(toVisible(group), ...itsFindings.flatMap((it) => linesOf(it, paint)), "");
  }
  return lines.concat(summary(findings)).join("\n");
}

function linesOf({ level, subject, meaning, remedy }: GroupedFinding, paint: Paint): string[] {
  const mark = paint(LEVEL_COLOURS[level], level) + " ".repeat(MARK_WIDTH - level.length);
  const [first = "", ...below] = toVisible(subject).split("\n");
  if (meaning !== "") below.push(...toVisible(meaning).split("\n").flatMap(wrap));
  if (remedy !== null) below.push(...toVisible(remedy).split("\n").map((line) => `> ${line}`));
  return [`  ${mark}${first}`].concat(below.map((line) => INDENT + line));
}

/** Splits the text into lines of readable length. */
function wrap(text: string): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const line = lines.at(-1) ?? "";
    if (line !== "" && line.length + word.length >= WIDTH) lines.push(word);
    else lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
  }
  return lines;
}

export function findingsJson(findings: readonly GroupedFinding[]): string {
  const counts = { problems: count(findings, "problem"), warnings: count(findings, "warning") };
  return toVisible(JSON.stringify({ ...counts, findings }, null, 2));
}

/** The failure to end with if there is a problem. */
export function failureOf(findings: readonly GroupedFinding[]): SystemFailure | null {
  if (count(findings, "problem") === 0) return null;
  return new SystemFailure({ what: `The host is not ready: ${summary(findings)}` });
}

function summary(findings: readonly GroupedFinding[]): string {
  const words = (level: "problem" | "warning"): string => {
    const number = count(findings, level);
    return `${number} ${level}${number === 1 ? "" : "s"}`;
  };
  const passed = count(findings, "ok");
  const checks = `${passed} check${passed === 1 ? "" : "s"} passed`;
  return `${words("problem")}, ${words("warning")}, ${checks}`;
}

function count(findings: readonly GroupedFinding[], level: Level): number {
  return findings.filter((finding) => finding.level === level).length;
}
