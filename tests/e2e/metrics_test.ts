// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { call, e2eTest, job, runOnBed } from "./bed.ts";
import { readOpenMetrics } from "../fakes/open_metrics.ts";

e2eTest("what jobs do is counted and timed, for node_exporter to read", async () => {
  const directory = Deno.makeTempDirSync({ prefix: "libvirt-gci-e2e-metrics-" });
  const file = `${directory}/gci.prom`;
  const settings = { metrics_file: file };
  const read = async () => readOpenMetrics(await Deno.readTextFile(file));
  const stages = (stage: string, result: string): string =>
    `libvirt_gci_stages_total{stage="${stage}",result="${result}"}`;
  const failures = (cause: string): string => `libvirt_gci_failures_total{cause="${cause}"}`;
  const machines = (state: string): string => `libvirt_gci_machines{state="${state}"}`;
  const seconds = (what: string): string =>
    `libvirt_gci_prepare_phase_seconds_${what}{phase="total"}`;
  try {
    let whileRunning: ReadonlyMap<string, number> = new Map();
    await runOnBed(job({ script: ["echo running; while :; do sleep 1; done"] }), {
      settings,
      events: [
        { stage: "build_script", action: async () => void (whileRunning = await read()) },
        { stage: "build_script", whenOutput: "running", action: "soft_cancel" },
      ],
    });
    assert.equal(whileRunning.get(machines("running")), 1);
    await runOnBed(job({ script: ["exit 3"] }), { settings });
    await call(["prepare", "--distro", "nothing"], { settings });
    await call(["gc"], { settings });
    const samples = await read();
    for (
      const [name, value] of [
        [stages("prepare", "success"), 2],
        [stages("prepare", "job"), 1],
        [stages("run", "job"), 1],
        [stages("run", "cancelled"), 1],
        [stages("cleanup", "success"), 2],
        [stages("gc", "success"), 1],
        [failures("script"), 1],
        [failures("template"), 1],
        [failures("cancelled"), 1],
        [machines("running"), 0],
        [machines("stopped"), 0],
        ["libvirt_gci_machines_disk_bytes", 0],
        [seconds("count"), 2],
      ] as const
    ) assert.equal(samples.get(name), value, name);
    assert((samples.get(seconds("sum")) ?? 0) > 2);
    assert((samples.get("libvirt_gci_overlay_pool_available_bytes") ?? 0) > 1e6);
    assert.doesNotMatch(await Deno.readTextFile(file), /gitlab-|lite|project/);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}, { thorough: true });
