// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * 50 jobs in a row on the test bed, as GitLab Runner runs them: what the host, libvirt's daemons and
 * dnsmasq hold before, after the first ten and in the end. Fails if anything grew that has to stay.
 * LIBVIRT_GCI names the compiled program; the argument is another number of jobs.
 */

import assert from "node:assert/strict";
import { command, job, runOnBed, TESTBED, virsh } from "../e2e/bed.ts";

const JOBS = Number(Deno.args[0] ?? 50);
/** As many that the daemons have filled their caches and started their threads. */
const WARM_UP = 10;
const PROJECT = "endurance";
/** The beginning of each machine's name. */
const MACHINE = `gitlab-${PROJECT}-`;
const DAEMONS = /^(libvirtd|virt\w+d|dnsmasq)$/;
/** What memory and descriptors may still grow by after the warm-up, without being a leak. */
const SLACK_MIB = 4;
const SLACK_COUNT = 2;

/** One figure: its value, and what the end of it all may have at most. */
interface Figure {
  readonly name: string;
  readonly value: number;
  /** Bounds the last value by the first or by the one after the warm-up, and this slack. */
  readonly bound: { readonly from: "start" | "warm"; readonly slack: number } | null;
}

const SAME = { from: "start", slack: 0 } as const;

async function measure(): Promise<Figure[]> {
  const figures = [...await measureDaemons(), ...await measureHost()];
  return figures.map((figure) => ({ ...figure, value: Math.round(figure.value * 10) / 10 }));
}

async function measureDaemons(): Promise<Figure[]> {
  const sums = new Map<string, { mib: number; descriptors: number; threads: number }>();
  for await (const { name: pid } of Deno.readDir("/proc")) {
    if (!/^\d+$/.test(pid)) continue;
    const status = await Deno.readTextFile(`/proc/${pid}/status`).catch(() => "");
    const name = /^Name:\s+(\S+)/.exec(status)?.[1] ?? "";
    if (!DAEMONS.test(name)) continue;
    const sum = sums.get(name) ?? { mib: 0, descriptors: 0, threads: 0 };
    const numberOf = (key: string) =>
      Number(new RegExp(`^${key}:\\s+(\\d+)`, "m").exec(status)?.[1]);
    sums.set(name, {
      mib: sum.mib + numberOf("RssAnon") / 1024,
      descriptors: sum.descriptors + await countEntries(`/proc/${pid}/fd`),
      threads: sum.threads + numberOf("Threads"),
    });
  }
  assert(sums.size > 0, "no daemon of libvirt runs here");
  return [...sums].sort().flatMap(([name, { mib, descriptors, threads }]) =>
    [
      { name: `${name}: memory, MiB`, value: mib, bound: { from: "warm", slack: SLACK_MIB } },
      {
        name: `${name}: descriptors`,
        value: descriptors,
        bound: { from: "warm", slack: SLACK_COUNT },
      },
      { name: `${name}: threads`, value: threads, bound: { from: "warm", slack: SLACK_COUNT } },
    ] as const
  );
}

async function measureHost(): Promise<Figure[]> {
  await virsh("pool-refresh", TESTBED.overlayPool);
  const same = async (name: string, ...program: string[]): Promise<Figure> => ({
    name,
    value: await countLines(...program),
    bound: SAME,
  });
  return [
    await same("domains", "virsh", "list", "--all", "--name"),
    await same("volumes", "virsh", "vol-list", TESTBED.overlayPool),
    await same("network filters", "virsh", "nwfilter-list"),
    await same("network filters in use", "virsh", "nwfilter-binding-list"),
    await same("network devices", "ip", "-oneline", "link"),
    // libvirt makes its own chains with the first isolated machine, and keeps them.
    {
      name: "rules of iptables",
      value: await countLines("iptables-save"),
      bound: { from: "warm", slack: 0 },
    },
    await same("rules of ebtables", "ebtables-save"),
    await same("control groups", "find", "/sys/fs/cgroup", "-type", "d", "-name", `*${MACHINE}*`),
    await same("QEMUs", "pgrep", "-f", `qemu.*${MACHINE}`),
    await same("files in /run/libvirt", "find", "/run/libvirt", "-type", "f,s"),
    await same("files of machines", "find", "/run", "/tmp", "-name", `*${MACHINE}*`),
    // The first go when they expire; of the others, libvirt keeps one for each machine.
    {
      name: "leases",
      value: await countLines("virsh", "net-dhcp-leases", TESTBED.network),
      bound: { from: "start", slack: JOBS },
    },
    { name: "logs of libvirt", value: await countEntries("/var/log/libvirt/qemu"), bound: null },
  ];
}

async function countEntries(directory: string): Promise<number> {
  return (await Array.fromAsync(Deno.readDir(directory)).catch(() => [])).length;
}

/** The lines that a program prints, without comments and the head of virsh's tables. */
async function countLines(...program: string[]): Promise<number> {
  const { stdout } = await command(program, { LIBVIRT_DEFAULT_URI: "qemu:///system" });
  const lines = stdout.split("\n").filter((line) => !/^(\s*|#.*|-+)$/.test(line));
  return lines.filter((line) => !/^ (Name|UUID|Port Dev|Expiry Time) /.test(line)).length;
}

async function runJobs(from: number, to: number): Promise<void> {
  for (let i = from; i < to; i++) {
    const { verdict, logText } = await runOnBed(job({ id: 1000 + i, projectName: PROJECT }));
    assert.equal(verdict, "success", logText);
  }
}

const began = performance.now();
const start = await measure();
await runJobs(0, Math.min(WARM_UP, JOBS));
const warm = await measure();
await runJobs(WARM_UP, JOBS);
const end = await measure();

const width = Math.max(...end.map(({ name }) => name.length));
const row = (name: string, values: readonly unknown[], verdict: string): void =>
  console.log(
    [name.padEnd(width), ...values.map((it) => String(it).padStart(7)), verdict].join("  "),
  );
row("", ["before", WARM_UP, JOBS], "");
let grown = 0;
for (const { name, value, bound } of end) {
  const [before, then] = [start, warm].map((figures) =>
    figures.find((figure) => figure.name === name)?.value ?? 0
  ) as [number, number];
  const most = bound && (bound.from === "start" ? before : then) + bound.slack;
  const isGrown = most !== null && value > most;
  if (isGrown) grown++;
  row(name, [before, then, value], most === null ? "" : isGrown ? `GREW, at most ${most}` : "ok");
}
const seconds = (performance.now() - began) / 1000;
console.log(`${JOBS} jobs in ${seconds.toFixed(0)} s, ${(seconds / JOBS).toFixed(1)} s each`);
Deno.exit(grown === 0 ? 0 : 1);
