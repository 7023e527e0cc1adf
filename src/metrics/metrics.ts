// SPDX-License-Identifier: GPL-2.0-or-later
import { type Fault, FAULTS } from "../errors.ts";
import { type Step, STEPS } from "../machine/steps.ts";

export type Counted = typeof COUNTED[number];
const COUNTED = ["prepare", "run", "cleanup", "gc"] as const;

/** How a stage can end: well, or by whose fault. */
export type Result = typeof RESULTS[number];
const RESULTS = ["success", "job", "host", "cancelled"] as const;

export type Phase = Step | "total";
const PHASES: readonly Phase[] = [...STEPS, "total"];

/** The upper bounds of the buckets, as the file has them. */
const BOUNDS = "0.05 0.1 0.25 0.5 1.0 2.5 5.0 10.0 20.0 30.0 60.0 120.0 300.0 600.0".split(" ");

/** The current values, besides the counts. */
export interface Gauges {
  readonly running: number;
  readonly stopped: number;
  readonly poolCapacityBytes: number;
  readonly poolAvailableBytes: number;
  /** Null if unknown. */
  readonly diskBytes: number | null;
}

export interface Observation {
  readonly version: string;
  readonly stage: Counted;
  readonly result: Result;
  /** Null without a failure. */
  readonly fault: Fault | null;
  /** The seconds that each completed phase of prepare took. */
  readonly phases: readonly (readonly [Phase, number])[];
  /** Null if unknown: the file keeps its own. */
  readonly gauges: Gauges | null;
}

/** The values of the file, by their names with their labels. */
export type Samples = Map<string, number>;

const PREFIX = "libvirt_gci_";
const END = "# EOF\n";

const DURATION = `${PREFIX}prepare_phase_seconds`;

interface Family {
  readonly name: string;
  readonly type: "counter" | "gauge" | "histogram";
  readonly unit?: "seconds" | "bytes";
  readonly help: string;
  /** All possible samples, in their order. A gauge without a value is left out, others are 0. */
  readonly samples: readonly string[];
}

/**
 * Labels contain no data from jobs or projects: they may be secret, and there is no end of them.
 */
const FAMILIES: readonly Family[] = [
  {
    name: `${PREFIX}stages`,
    type: "counter",
    help: "Stages that ended, by result.",
    samples: COUNTED.flatMap((stage) => RESULTS.map((result) => stageSample(stage, result))),
  },
  {
    name: `${PREFIX}failures`,
    type: "counter",
    help: "Stages that failed, by cause.",
    samples: FAULTS.map(failureSample),
  },
  {
    name: DURATION,
    type: "histogram",
    unit: "seconds",
    help: "How long each step of prepare took, and all of it (total) if it succeeded.",
    samples: PHASES.flatMap((phase) => [
      BOUNDS.map((bound) => bucketSample(phase, bound)),
      bucketSample(phase, "+Inf"),
      `${DURATION}_count{phase="${phase}"}`,
      `${DURATION}_sum{phase="${phase}"}`,
    ]).flat(),
  },
  {
    name: `${PREFIX}machines`,
    type: "gauge",
    help:
      "Machines with volumes in the overlay pool. A stopped machine is being created, or is a leftover.",
    samples: [`${PREFIX}machines{state="running"}`, `${PREFIX}machines{state="stopped"}`],
  },
  bytes("machines_disk", "The disk space of all machines' volumes, measured by the last gc."),
  bytes("overlay_pool_capacity", "The size of the overlay pool."),
  bytes("overlay_pool_available", "The free space in the overlay pool."),
];

function bytes(what: string, help: string): Family {
  const name = `${PREFIX}${what}_bytes`;
  return { name, type: "gauge", unit: "bytes", help, samples: [name] };
}

function stageSample(stage: Counted, result: Result): string {
  return `${PREFIX}stages_total{stage="${stage}",result="${result}"}`;
}

function failureSample(fault: Fault): string {
  return `${PREFIX}failures_total{cause="${fault}"}`;
}

function bucketSample(phase: Phase, bound: string): string {
  return `${DURATION}_bucket{phase="${phase}",le="${bound}"}`;
}

export function addObservation(
  samples: Samples,
  { stage, result, fault, phases, gauges }: Observation,
): void {
  const add = (name: string, value: number): void => {
    samples.set(name, Math.round(((samples.get(name) ?? 0) + value) * 1000) / 1000);
  };
  add(stageSample(stage, result), 1);
  if (fault !== null) add(failureSample(fault), 1);
  for (const [phase, seconds] of phases) {
    const bounds = BOUNDS.filter((bound) => seconds <= Number(bound)).concat("+Inf");
    for (const bound of bounds) add(bucketSample(phase, bound), 1);
    add(`${DURATION}_count{phase="${phase}"}`, 1);
    add(`${DURATION}_sum{phase="${phase}"}`, seconds);
  }
  if (gauges === null) return;
  samples.set(`${PREFIX}machines{state="running"}`, gauges.running);
  samples.set(`${PREFIX}machines{state="stopped"}`, gauges.stopped);
  samples.set(`${PREFIX}overlay_pool_capacity_bytes`, gauges.poolCapacityBytes);
  samples.set(`${PREFIX}overlay_pool_available_bytes`, gauges.poolAvailableBytes);
  if (gauges.diskBytes !== null) samples.set(`${PREFIX}machines_disk_bytes`, gauges.diskBytes);
}

/**
 * The file in OpenMetrics' text format
 * (https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md), as far as
 * Prometheus' older format has it too, which node_exporter reads. So the version is no "info".
 */
export function metricsText(samples: Samples, version: string): string {
  const build = `${PREFIX}build_info`;
  const sample = `${build}{version="${version}"}`;
  const families: readonly Family[] = [
    {
      name: build,
      type: "gauge",
      help: "The version that last wrote this file.",
      samples: [sample],
    },
    ...FAMILIES,
  ];
  return families.map((family) => familyText(family, samples.set(sample, 1))).join("") + END;
}

function familyText({ name, type, unit, help, samples: names }: Family, samples: Samples): string {
  const lines = names.flatMap((sample) => {
    const value = samples.get(sample) ?? (type === "gauge" ? null : 0);
    return value === null ? [] : [`${sample} ${value}\n`];
  });
  if (lines.length === 0) return "";
  return `# TYPE ${name} ${type}\n` + (unit === undefined ? "" : `# UNIT ${name} ${unit}\n`) +
    `# HELP ${name} ${help}\n` + lines.join("");
}

/** Whether the text is from {@linkcode metricsText}, complete or not. */
export function isOurs(text: string): boolean {
  return text.startsWith(`# TYPE ${PREFIX}`);
}

/** The samples in a text of ours; null if it is incomplete. */
export function parseMetrics(text: string): Samples | null {
  if (!text.endsWith(`\n${END}`)) return null;
  const samples: Samples = new Map();
  for (const line of text.trimEnd().split("\n").filter((line) => !line.startsWith("# "))) {
    const [, name, value] = /^(libvirt_gci_\w+(?:\{[^}]*\})?) (\S+)$/.exec(line) ?? [];
    if (name === undefined || !Number.isFinite(Number(value))) return null;
    samples.set(name, Number(value));
  }
  return samples;
}
