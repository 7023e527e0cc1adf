// SPDX-License-Identifier: GPL-2.0-or-later
import { cleanUpAll, makeWarm, prepareAll, whyBooted } from "./machines.ts";
import { median, report, time } from "./measure.ts";
import { settingsFile } from "../e2e/bed.ts";

const COUNT = 8;

/** Until the last of some machines is ready that are resumed at once, beside one, and beside boots. */
export async function measureCrowd(
  program: readonly string[],
  template: string,
  runs: number,
): Promise<void> {
  using coldFile = settingsFile({ start: "cold" });
  using warmFile = settingsFile({ start: "warm" });
  const cold = [...program, "--config", coldFile.path];
  const warm = [...program, "--config", warmFile.path];
  const one: Round[] = [];
  const many: Round[] = [];
  await using _ = await makeWarm(warm, template);
  for (let i = 0; i < runs; i++) {
    one.push(await start(warm, template, 1));
    many.push(await start(warm, template, COUNT));
  }
  const boots = await start(cold, template, COUNT);
  const seconds = (rounds: readonly Round[]) => median(rounds.map((round) => round.seconds));
  const busy = (rounds: readonly Round[]) => median(rounds.map((round) => round.busy)).toFixed(1);
  const ratio = median(many.map((round, i) => round.seconds / (one[i]?.seconds ?? NaN)));
  report(
    `${COUNT} of "${template}" resumed at once`,
    `${seconds(many).toFixed(1)} s until the last is ready, one ${seconds(one).toFixed(1)} s, ` +
      `ratio ${ratio.toFixed(2)}`,
    { goal: "2", met: ratio <= 2 },
  );
  const reasons = many.flatMap((round) => round.reasons);
  console.log(
    `${navigator.hardwareConcurrency} cores were busy for ${busy(many)} s, with one for ` +
      `${busy(one)} s; ${COUNT} that boot take ${boots.seconds.toFixed(1)} s, ratio to those ` +
      `${(seconds(many) / boots.seconds).toFixed(2)}; ` +
      `of ${runs * COUNT} to resume, ${reasons.length} booted instead`,
  );
  for (const reason of new Set(reasons)) console.log(`- ${reason}`);
}

/** Some machines, from the first call of prepare to the end of the last. */
interface Round {
  readonly seconds: number;
  /** What all of the host's processors did meanwhile, in seconds of one. */
  readonly busy: number;
  /** Why machines booted that were to be resumed. */
  readonly reasons: readonly string[];
}

async function start(
  ours: readonly string[],
  template: string,
  count: number,
): Promise<Round> {
  const machines = Array.from({ length: count }, (_, i) => `gci-bench-crowd-${i + 1}`);
  try {
    let outputs: readonly string[] = [];
    const before = await busySeconds();
    const ms = await time(async () => outputs = await prepareAll(ours, template, machines));
    const busy = await busySeconds() - before;
    const reasons = outputs.map(whyBooted).filter((reason) => reason !== null);
    return { seconds: ms / 1000, busy, reasons };
  } finally {
    await cleanUpAll(ours, machines);
  }
}

/** Processor time since the host's boot, of all that runs there: proc(5). */
async function busySeconds(): Promise<number> {
  const [all = ""] = (await Deno.readTextFile("/proc/stat")).split("\n");
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = all.split(/ +/).slice(1)
    .map(Number);
  return (user + nice + system + irq + softirq) / 100;
}
