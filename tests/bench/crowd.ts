// SPDX-License-Identifier: GPL-2.0-or-later
import { settingsFile } from "../e2e/bed.ts";
import { cleanUpAll, makeWarm, prepareAll, whyBooted } from "./machines.ts";
import { median, report, time } from "./measure.ts";

const COUNT = 8;

/** Until the last of some machines is ready that are resumed at once, beside one, and beside boots. */
export async function measureCrowd(
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
  using coldFile = settingsFile({ start: "cold" });
  using warmFile = settingsFile({ start: "warm" });
  const cold = [...program, "--config", coldFile.path];
  const warm = [...program, "--config", warmFile.path];
  const one: number[] = [];
  const many: number[] = [];
  const reasons: string[] = [];
  await using _ = await makeWarm(warm, template);
  for (let i = 0; i < runs; i++) {
    one.push((await start(warm, template, 1)).seconds);
    const all = await start(warm, template, COUNT);
    many.push(all.seconds);
    reasons.push(...all.reasons);
  }
  const boots = await start(cold, template, COUNT);
  const ratio = median(many.map((seconds, i) => seconds / (one[i] ?? NaN)));
  report(
    `${COUNT} of "${template}" resumed at once`,
    `${median(many).toFixed(1)} s until the last is ready, one ${median(one).toFixed(1)} s, ` +
      `ratio ${ratio.toFixed(2)}, on ${navigator.hardwareConcurrency} cores`,
    { goal: "2", met: ratio <= 2 },
  );
  console.log(
    `${COUNT} that boot at once: ${boots.seconds.toFixed(1)} s; ` +
      `to those, the resumed are ${(median(many) / boots.seconds).toFixed(2)}; ` +
      `of ${runs * COUNT} to resume, ${reasons.length} booted instead`,
  );
  for (const reason of new Set(reasons)) console.log(`- ${reason}`);
}

/** From the first call of prepare to the end of the last, and why machines booted, if any did. */
async function start(
  ours: readonly string[],
  template: string,
  count: number,
): Promise<{ readonly seconds: number; readonly reasons: readonly string[] }> {
  const machines = Array.from({ length: count }, (_, i) => `gci-bench-crowd-${i + 1}`);
  try {
    let outputs: readonly string[] = [];
    const ms = await time(async () => outputs = await prepareAll(ours, template, machines));
    const reasons = outputs.map(whyBooted).filter((reason) => reason !== null);
    return { seconds: ms / 1000, reasons };
  } finally {
    await cleanUpAll(ours, machines);
  }
}
