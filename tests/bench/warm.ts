// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { command, settingsFile, TESTBED, virsh } from "../e2e/bed.ts";
import { median, report, time } from "./measure.ts";
import { type Bar, barOf, phaseTable, type Steps, stepsOf } from "./phases.ts";
import { type BarGroup, plot } from "./plot.ts";
import { done } from "./program.ts";

const MACHINE = "gci-bench-warm";
const STARTS = ["cold", "warm"] as const;

/** What a prepare took, and in which steps. */
interface Run {
  readonly seconds: number;
  readonly steps: Steps;
}

type Start = typeof STARTS[number];

/**
 * A whole prepare, until a command has run over SSH, of machines that are resumed, beside one that
 * boots each time. Then the steps of both, and what a resumed machine takes of the host.
 */
export async function measureWarm(
  program: readonly string[],
  { templates, runs, svg }: {
    readonly templates: readonly string[];
    readonly runs: number;
    /** The file that a plot of it is written to, if any. */
    readonly svg: string | null;
  },
): Promise<void> {
  const groups: BarGroup[] = [];
  let accelerator = "";
  for (const template of templates) {
    const measured = await measureTemplate(program, template, runs);
    groups.push({ name: template, bars: measured.bars });
    accelerator = measured.isKvm ? "with KVM" : "emulated";
  }
  if (svg === null) return;
  const times = groups.map(({ name, bars }) =>
    `${name}: ${bars.map((bar) => `${bar.name} ${bar.seconds.toFixed(2)} s`).join(", ")}`
  );
  await Deno.writeTextFile(
    svg,
    plot(groups, {
      title: `prepare, until a command has run over SSH (${accelerator}, medians of ${runs})`,
      description: times.join("; "),
    }),
  );
}

async function measureTemplate(
  program: readonly string[],
  template: string,
  runs: number,
): Promise<{ readonly bars: readonly Bar[]; readonly isKvm: boolean }> {
  const files = STARTS.map((start) => settingsFile({ start }));
  const [cold = [], warm = []] = files.map(({ path }) => [...program, "--config", path]);
  const programs = { cold, warm };
  const measured: Record<Start, Run[]> = { cold: [], warm: [] };
  let taken = "";
  let isKvm = false;
  try {
    await done([...warm, "warm", template]);
    for (let i = 0; i < runs; i++) {
      for (const start of STARTS) {
        const ours = programs[start];
        let output = "";
        const prepare = [...ours, "prepare", "--distro", template, "--machine", MACHINE];
        const ms = await time(async () => output = await done(prepare));
        assert(!/boots/.test(output), output);
        measured[start].push({ seconds: ms / 1000, steps: stepsOf(output) });
        if (start === "cold") isKvm = /^Started the machine .*\(kvm\)$/m.test(output);
        else taken = await takenBy();
        await done([...ours, "cleanup", "--machine", MACHINE]);
      }
    }
  } finally {
    await command([...warm, "cleanup", "--machine", MACHINE]);
    await command([...warm, "warm", "--drop", template]);
    for (const file of files) file[Symbol.dispose]();
  }
  const ratio = ratioOf(measured.warm, measured.cold);
  const [booted, resumed] = [barOf("cold", measured.cold), barOf("warm", measured.warm)];
  report(
    `prepare of a resumed "${template}"`,
    `${resumed.seconds.toFixed(2)} s, of one that boots ${booted.seconds.toFixed(2)} s, ` +
      `ratio ${ratio.toFixed(2)}`,
    isKvm
      ? { goal: "0.1 and 0.2 s", met: ratio <= 0.1 && resumed.seconds <= 0.2 }
      : { goal: "0.3", met: ratio <= 0.3 },
  );
  console.log(`${phaseTable([booted, resumed])}\na resumed machine: ${taken}`);
  return { bars: [booted, resumed], isKvm };
}

/** The median of the ratios of runs that followed each other. */
function ratioOf(runs: readonly Run[], others: readonly Run[]): number {
  return median(runs.map(({ seconds }, i) => seconds / (others[i]?.seconds ?? NaN)));
}

/** The memory that QEMU has, and what the machine's disk takes of the pool. */
async function takenBy(): Promise<string> {
  const rss = /rss (\d+)/.exec(await virsh("dommemstat", MACHINE))?.[1];
  const disk = await virsh(
    ...["vol-info", "--bytes", `${MACHINE}.overlay.libvirt-gci`, TESTBED.overlayPool],
  );
  const bytes = /Allocation: +(\d+)/.exec(disk)?.[1];
  return `${Math.round(Number(rss) / 1024)} MiB of memory for QEMU, ` +
    `${(Number(bytes) / 1024 ** 2).toFixed(1)} MiB of disk`;
}
