// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { command, settingsFile, TESTBED, virsh } from "../e2e/bed.ts";
import { median, report, time } from "./measure.ts";

const MACHINE = "gci-bench-warm";
const STARTS = ["cold", "warm"] as const;

/** What prepare says that its steps took, in seconds. */
type Steps = ReadonlyMap<string, number>;

/**
 * A whole prepare, until a command has run over SSH, of machines that are resumed, beside one that
 * boots each time. Then the steps of both, and what a resumed machine takes of the host.
 */
export async function measureWarm(
  program: readonly string[],
  { templates, runs }: { readonly templates: readonly string[]; readonly runs: number },
): Promise<void> {
  for (const template of templates) await measureTemplate(program, template, runs);
}

async function measureTemplate(
  program: readonly string[],
  template: string,
  runs: number,
): Promise<void> {
  const files = STARTS.map((start) => settingsFile({ start }));
  const [cold = [], warm = []] = files.map(({ path }) => [...program, "--config", path]);
  const steps: Record<typeof STARTS[number], Steps[]> = { cold: [], warm: [] };
  const times: Record<typeof STARTS[number], number[]> = { cold: [], warm: [] };
  let taken = "";
  try {
    await run([...warm, "warm", template]);
    for (let i = 0; i < runs; i++) {
      for (const [start, ours] of [["cold", cold], ["warm", warm]] as const) {
        const prepare = [...ours, "prepare", "--distro", template, "--machine", MACHINE];
        times[start].push(await time(async () => steps[start].push(stepsOf(await run(prepare)))));
        if (start === "warm") taken = await takenBy();
        await run([...ours, "cleanup", "--machine", MACHINE]);
      }
    }
  } finally {
    await command([...warm, "cleanup", "--machine", MACHINE]);
    await command([...warm, "warm", "--drop", template]);
    for (const file of files) file[Symbol.dispose]();
  }
  const ratio = median(times.warm.map((ms, i) => ms / (times.cold[i] ?? NaN)));
  const seconds = (start: "cold" | "warm"): string => (median(times[start]) / 1000).toFixed(2);
  report(
    `prepare of a resumed "${template}"`,
    `${seconds("warm")} s, of one that boots ${seconds("cold")} s, ratio ${ratio.toFixed(2)}`,
    { goal: "0.3", met: ratio <= 0.3 },
  );
  for (const start of STARTS) console.log(`         ${start}: ${stepsText(steps[start])}`);
  console.log(`         a resumed machine: ${taken}`);
}

async function run(words: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await command(words);
  assert.equal(status, 0, stderr);
  assert(!/boots/.test(stderr), stderr);
  return stdout;
}

function stepsOf(output: string): Steps {
  const words = /is ready .*: (.*)/.exec(output)?.[1] ?? "";
  return new Map(
    words.split(", ").map((step) => {
      const [, name = "", number = "", unit] = /^(.*) ([\d.]+) (m?s)$/.exec(step) ?? [];
      return [name, Number(number) / (unit === "ms" ? 1000 : 1)];
    }),
  );
}

function stepsText(all: readonly Steps[]): string {
  const names = [...all[0]?.keys() ?? []];
  return names.map((name) =>
    `${name} ${median(all.map((steps) => steps.get(name) ?? NaN)).toFixed(2)}`
  ).join(", ") + " s";
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
