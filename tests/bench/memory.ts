// SPDX-License-Identifier: GPL-2.0-or-later
import { sleep } from "../../src/wait.ts";
import { type Merged, withKsm } from "./ksm.ts";
import { cleanUpAll, makeWarm, prepareAll } from "./machines.ts";
import { table } from "./measure.ts";
import { interrupted } from "./program.ts";
import { settingsFile, TESTBED, virsh } from "../e2e/bed.ts";

const COUNT = 8;
/** After which a guest that was resumed has done what it does at first. */
const REST_MS = 5000;

/** MiB for each machine. */
interface Taken {
  readonly rss: number;
  readonly pss: number;
  readonly disk: number;
}

/** What resumed machines take of the host, alone, beside others, and where the kernel merges pages. */
export async function measureMemory(program: readonly string[], template: string): Promise<void> {
  using file = settingsFile({ start: "warm" });
  const ours = [...program, "--config", file.path];
  const machines = Array.from({ length: COUNT }, (_, i) => `gci-bench-memory-${i + 1}`);
  const [first = "", ...others] = machines;
  await using _ = await makeWarm(ours, template);
  try {
    await prepareAll(ours, template, [first]);
    const one = await takenBy([first]);
    for (const machine of others) await prepareAll(ours, template, [machine]);
    const all = await takenBy(machines);
    const ksm = await withKsm(async (merged) => ({ merged, ...await takenBy(machines) }));
    const columns = [one, all, ...(ksm === null ? [] : [ksm])];
    console.log(
      table([
        [`a resumed "${template}", MiB`, "alone", `of ${COUNT}`, ...(ksm ? ["with KSM"] : [])],
        ["memory of QEMU (RSS)", ...columns.map(({ rss }) => rss.toFixed(0))],
        ["its share of it (PSS)", ...columns.map(({ pss }) => pss.toFixed(0))],
        ["disk", ...columns.map(({ disk }) => disk.toFixed(1))],
      ]),
    );
    console.log(ksm === null ? "The kernel has no KSM for us" : sentenceOf(ksm.merged));
  } finally {
    await cleanUpAll(ours, machines);
  }
}

function sentenceOf({ savedMib, guestMib, seconds, cpuSeconds, isSettled }: Merged): string {
  return `KSM saved ${(savedMib / COUNT).toFixed(0)} MiB of ` +
    `${(guestMib / COUNT).toFixed(0)} that each guest uses, ` +
    `in ${seconds.toFixed(0)} s, ${cpuSeconds.toFixed(1)} s of a processor` +
    (isSettled ? "" : ", and had not settled");
}

async function takenBy(machines: readonly string[]): Promise<Taken> {
  await sleep(REST_MS, interrupted);
  interrupted.throwIfAborted();
  let [rss, pss, disk] = [0, 0, 0];
  for (const machine of machines) {
    const pid = (await Deno.readTextFile(`/run/libvirt/qemu/${machine}.pid`)).trim();
    const rollup = await Deno.readTextFile(`/proc/${pid}/smaps_rollup`);
    const mibOf = (key: string) =>
      Number(new RegExp(`^${key}: +(\\d+) kB`, "m").exec(rollup)?.[1]) / 1024;
    rss += mibOf("Rss");
    pss += mibOf("Pss");
    disk += await diskMib(machine);
  }
  const count = machines.length;
  return { rss: rss / count, pss: pss / count, disk: disk / count };
}

async function diskMib(machine: string): Promise<number> {
  const info = await virsh(
    "vol-info",
    "--bytes",
    `${machine}.overlay.libvirt-gci`,
    TESTBED.overlayPool,
  );
  return Number(/Allocation: +(\d+)/.exec(info)?.[1]) / 1024 ** 2;
}
