// SPDX-License-Identifier: GPL-2.0-or-later
import { sleep } from "../../src/wait.ts";
import { interrupted } from "./program.ts";

const KSM = "/sys/kernel/mm/ksm";

/** Fast, so that it settles within a minute: a host that is in use would give it less. */
const FAST = { pages_to_scan: "10000", sleep_millisecs: "10", run: "1" } as const;

const MOST_SECONDS = 120;

const MIB_OF_PAGE = 4096 / 1024 ** 2;

/** The kernel leaves out pages at some scans that were alone at others before. */
const SCANS = 8;

/** What the kernel merged, and what that took. */
export interface Merged {
  /** Pages that are there once instead of once each: what was saved. */
  readonly savedMib: number;
  /** The memory that may be merged: what guests have used of theirs. */
  readonly guestMib: number;
  /** Until {@linkcode SCANS} scans of all memory found hardly more. */
  readonly seconds: number;
  readonly cpuSeconds: number;
  readonly isSettled: boolean;
}

/**
 * Has the kernel merge equal pages (https://docs.kernel.org/admin-guide/mm/ksm.html) until it finds no
 * more, measures, and then has everything as it was. Null where there is no KSM to use.
 */
export async function withKsm<T>(
  measure: (merged: Merged) => Promise<T>,
  directory = KSM,
): Promise<T | null> {
  const before = new Map<string, string>();
  try {
    for (const name of Object.keys(FAST)) before.set(name, await read(directory, name));
  } catch {
    return null;
  }
  try {
    for (const [name, value] of Object.entries(FAST)) await write(directory, name, value);
    return await measure(await settle(directory));
  } finally {
    // Without 2, pages stay merged although nothing merges any more.
    if (before.get("run") === "0") await write(directory, "run", "2");
    for (const [name, value] of before) await write(directory, name, value);
  }
}

async function settle(directory: string): Promise<Merged> {
  const start = performance.now();
  const cpuBefore = await cpuSecondsOfKsmd();
  const seconds = () => (performance.now() - start) / 1000;
  let last = await count(directory);
  let isSettled = false;
  while (!isSettled && seconds() < MOST_SECONDS) {
    await sleep(1000, interrupted);
    interrupted.throwIfAborted();
    const now = await count(directory);
    if (now.scans - last.scans < SCANS) continue;
    isSettled = last.sharing > 0 && now.sharing <= last.sharing * 1.01;
    last = now;
  }
  const { sharing, all } = await count(directory);
  return {
    savedMib: sharing * MIB_OF_PAGE,
    guestMib: all * MIB_OF_PAGE,
    seconds: seconds(),
    cpuSeconds: await cpuSecondsOfKsmd() - cpuBefore,
    isSettled,
  };
}

async function count(
  directory: string,
): Promise<{ readonly scans: number; readonly sharing: number; readonly all: number }> {
  const numberIn = async (name: string) => Number(await read(directory, name));
  const sharing = await numberIn("pages_sharing");
  const others = ["pages_shared", "pages_unshared", "pages_volatile"].map(numberIn);
  return {
    scans: await numberIn("full_scans"),
    sharing,
    all: (await Promise.all(others)).reduce((a, b) => a + b, sharing),
  };
}

async function read(directory: string, name: string): Promise<string> {
  return (await Deno.readTextFile(`${directory}/${name}`)).trim();
}

async function write(directory: string, name: string, value: string): Promise<void> {
  await Deno.writeTextFile(`${directory}/${name}`, value);
}

/** The processor time of the kernel's thread that merges. */
async function cpuSecondsOfKsmd(): Promise<number> {
  for await (const { name: pid } of Deno.readDir("/proc")) {
    const stat = await Deno.readTextFile(`/proc/${pid}/stat`).catch(() => "");
    if (!stat.includes(" (ksmd) ")) continue;
    const [user, system] = stat.split(") ")[1]?.split(" ").slice(11, 13) ?? []; // proc(5)
    return (Number(user) + Number(system)) / 100;
  }
  return 0;
}
