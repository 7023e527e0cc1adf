// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";

/** A sample of a file, under its name with its labels. */
export type MetricSamples = ReadonlyMap<string, number>;

const NAME = "[a-zA-Z_:][a-zA-Z0-9_:]*";
const LABEL = `[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\\\\n]|\\\\[\\\\"n])*"`;
const SAMPLE = new RegExp(`^(${NAME})(?:\\{(${LABEL}(?:,${LABEL})*)\\})? (\\S+)$`);
const NUMBER = /^-?\d+(\.\d+)?(e[+-]?\d+)?$/;
const TYPES: Readonly<Record<string, readonly string[]>> = {
  gauge: [""],
  counter: ["_total"],
  histogram: ["_bucket", "_count", "_sum"],
};

/**
 * The samples of an OpenMetrics file. It fails on what the specification forbids, and on what
 * Prometheus' older format does not know.
 */
export function readOpenMetrics(text: string): MetricSamples {
  assert(text.endsWith("\n# EOF\n"), "no # EOF at the end");
  const samples = new Map<string, number>();
  const families = new Set<string>();
  let family = "";
  let type = "";
  let hasSamples = false;
  for (const line of text.slice(0, -"\n# EOF\n".length).split("\n")) {
    if (line.startsWith("# ")) {
      const [, word, name, rest = ""] = line.split(/ (\S+) (\S+) (.+)/);
      assert(word && name && /^(TYPE|UNIT|HELP)$/.test(word), line);
      if (word === "TYPE") {
        assert(!families.has(name), `${name} comes again`);
        assert(rest in TYPES, line);
        families.add(name);
        [family, type, hasSamples] = [name, rest, false];
      }
      assert.equal(name, family, line);
      assert(!hasSamples, `${line}: after samples`);
      if (word === "UNIT") assert(name.endsWith(`_${rest}`), line);
      if (word === "HELP") assert(!rest.includes("\\"), line);
      continue;
    }
    const [, name = "", labels, value = ""] = SAMPLE.exec(line) ?? [];
    assert(TYPES[type]?.some((ending) => name === family + ending), `${line}: in ${family}`);
    assert.match(value, NUMBER, line);
    assert(Number(value) >= 0, line);
    const key = line.slice(0, line.lastIndexOf(" "));
    assert(!samples.has(key), `${key} comes again`);
    const names = (labels ?? "").match(/[a-z_]+(?==")/g) ?? [];
    assert.equal(new Set(names).size, names.length, line);
    samples.set(key, Number(value));
    hasSamples = true;
  }
  checkHistograms(samples);
  return samples;
}

/** The buckets of each histogram have canonical bounds that rise, as their values do. */
function checkHistograms(samples: MetricSamples): void {
  const buckets = [...samples].filter(([name]) => /_bucket\{/.test(name));
  const series = Map.groupBy(buckets, ([name]) => name.replace(/,?le="[^"]*"/, ""));
  for (const [name, ofSeries] of series) {
    const bounds = ofSeries.map(([bucket]) => /le="([^"]*)"/.exec(bucket)?.[1] ?? "");
    assert.equal(bounds.at(-1), "+Inf", name);
    const numbers = bounds.slice(0, -1).map((bound) => {
      assert.match(bound, /^\d+\.\d+$/, `${name}: not canonical`);
      return Number(bound);
    });
    assert.deepEqual(numbers, [...new Set(numbers)].sort((a, b) => a - b), name);
    const values = ofSeries.map(([, value]) => value);
    assert.deepEqual(values, [...values].sort((a, b) => a - b), `${name}: not cumulative`);
    assert.equal(values.at(-1), samples.get(name.replace("_bucket", "_count")), name);
    assert(samples.has(name.replace("_bucket", "_sum")), name);
  }
}
