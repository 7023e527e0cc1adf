// SPDX-License-Identifier: GPL-2.0-or-later
import { BuildFailure, explain, faultOf, SystemFailure, UsageError } from "../errors.ts";
import { Domain } from "../libvirt/domain.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import type { Host } from "../machine/context.ts";
import { machinesOf } from "../machine/inventory.ts";
import { poolSpace } from "../machine/queue/host_load.ts";
import type { Step } from "../machine/steps.ts";
import { findActivePool } from "../machine/storage/pools.ts";
import type { Counted, Gauges, Phase, Result } from "./metrics.ts";
import { addToMetricsFile } from "./metrics_file.ts";
import { within } from "../wait.ts";

const WRITE_ADVICE =
  "Set metrics_file to a file in a directory that exists and that only this user can write to";
const GAUGES_MS = 1000;
const GAUGES_OF_GC_MS = 60_000;

export interface MeterOptions {
  readonly file: string;
  readonly stage: Counted;
  readonly version: string;
  /** When the stage began, by performance.now(); by default now. */
  readonly start?: number;
  readonly warn: (line: string) => void;
}

/** Counts one call of a stage. Whatever goes wrong with it is a warning only. */
export class Meter {
  readonly #options: MeterOptions;
  readonly #start: number;
  readonly #phases: [Phase, number][] = [];
  #gauges: Gauges | null = null;

  constructor(options: MeterOptions) {
    this.#options = options;
    this.#start = options.start ?? performance.now();
  }

  readonly onStep = (step: Step, milliseconds: number): void => {
    this.#phases.push([step, milliseconds / 1000]);
  };

  /** Measures the host with libvirt's help, unless that takes long. */
  async measure(host: Host): Promise<void> {
    if (this.#options.stage === "run") return; // a run changes none of that
    const disks = this.#options.stage === "gc";
    const measured = measure(host, { disks }).catch(() => null); // they stay as they were
    this.#gauges = await within(measured, disks ? GAUGES_OF_GC_MS : GAUGES_MS);
  }

  /** Adds the counts to the file. `failure` is the stage's error, or null. */
  async end(failure: unknown): Promise<void> {
    if (failure instanceof UsageError) return; // a mistyped command is no stage
    const { file, stage, version, warn } = this.#options;
    const seconds = (performance.now() - this.#start) / 1000;
    if (failure === null && stage === "prepare") this.#phases.push(["total", seconds]);
    try {
      await addToMetricsFile(file, {
        version,
        stage,
        result: resultOf(failure),
        fault: failure === null ? null : faultOf(failure),
        phases: this.#phases,
        gauges: this.#gauges,
      }, { warn });
    } catch (cause) {
      const what = `Cannot count this stage in the metrics file "${file}"`;
      const hasAdvice = cause instanceof SystemFailure;
      const failure = hasAdvice ? { what, cause } : { what, cause, advice: WRITE_ADVICE };
      warn(explain(new SystemFailure(failure)));
    }
  }
}

function resultOf(failure: unknown): Result {
  if (failure === null) return "success";
  if (faultOf(failure) === "cancelled") return "cancelled";
  return failure instanceof BuildFailure ? "job" : "host";
}

/** Counts machines and their space; null without the pool. `disks` takes calls for each machine. */
export async function measure(
  { connection, config }: Host,
  { disks }: { readonly disks: boolean },
): Promise<Gauges | null> {
  using pool = await findActivePool(connection, config.pools.overlays);
  if (pool === null) return null;
  const machines = machinesOf(await pool.volumeNames());
  using domains = await Domain.listActive(connection);
  const running = domains.filter(({ name }) => machines.has(name)).length;
  const space = await poolSpace(connection, pool);
  return {
    running,
    stopped: machines.size - running,
    poolCapacityBytes: space.total,
    poolAvailableBytes: space.available,
    diskBytes: disks ? await diskBytes(pool, [...machines.values()].flat()) : null,
  };
}

async function diskBytes(pool: StoragePool, volumes: readonly string[]): Promise<number> {
  let sum = 0;
  for (const name of volumes) {
    using volume = await pool.findVolume(name);
    sum += await volume?.allocationBytes().catch(() => 0) ?? 0; // it may be deleted at any time
  }
  return sum;
}
