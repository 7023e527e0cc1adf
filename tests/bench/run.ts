// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { openSshTo } from "./machines.ts";
import { compare, median, report } from "./measure.ts";
import { done, interrupted } from "./program.ts";
import { command } from "../e2e/bed.ts";

const MACHINE = "gci-bench";
const OUTPUT_BYTES = 200_000_000;

/** `run` of an empty script and of one with much output, beside OpenSSH's client to the same guest. */
export async function measureRun(ours: readonly string[], runs: number): Promise<void> {
  const script = await Deno.makeTempFile({ prefix: "libvirt-gci-bench-" });
  try {
    await done([...ours, "prepare", "--distro", "lite", "--machine", MACHINE]);
    const run = [...ours, "run", "--machine", MACHINE];
    const ssh = await openSshTo(MACHINE);
    const memory: number[] = [];
    const empty = await compare(
      runs,
      async () => memory.push(await watch([...run, "--script", script])),
      () => watch([...ssh, "bash", "-s"]),
    );
    report(
      "run of an empty script",
      `${empty.ours.toFixed(0)} ms, OpenSSH ${empty.theirs.toFixed(0)} ms, ` +
        `ratio ${empty.ratio.toFixed(2)}`,
      { goal: "0.6", met: empty.ratio <= 0.6 },
    );
    const flood = ["head", "-c", String(OUTPUT_BYTES), "/dev/zero"];
    const output = await compare(
      Math.ceil(runs / 3),
      async () => memory.push(await watch([...run, "--", ...flood])),
      () => watch([...ssh, ...flood]),
    );
    report(
      "200 MB of output",
      `${(output.ours / 1000).toFixed(1)} s, OpenSSH ${(output.theirs / 1000).toFixed(1)} s, ` +
        `ratio ${output.ratio.toFixed(2)}`,
      { goal: "1.5", met: output.ratio <= 1.5 },
    );
    const most = Math.max(...memory);
    report("memory of run", `${most.toFixed(0)} MiB, median ${median(memory).toFixed(0)} MiB`, {
      goal: "100 MiB",
      met: most < 100,
    });
  } finally {
    await Deno.remove(script);
    await command([...ours, "cleanup", "--machine", MACHINE]);
  }
}

/** Runs a program to its end and throws away what it prints. Gives its most memory, in MiB. */
async function watch([program = "", ...args]: readonly string[]): Promise<number> {
  interrupted.throwIfAborted();
  const child = new Deno.Command(program, {
    args,
    stdin: "piped",
    stdout: "piped",
    stderr: "inherit",
    signal: interrupted,
  }).spawn();
  await child.stdin.close();
  const peak = watchMemory(child.pid);
  await child.stdout.pipeTo(new WritableStream({ write() {} }));
  const { code } = await child.status;
  const most = peak();
  assert.equal(code, 0, `${program} ${args.join(" ")}`);
  return most;
}

function watchMemory(pid: number): () => number {
  let peak = 0;
  const timer = setInterval(async () => {
    const status = await Deno.readTextFile(`/proc/${pid}/status`).catch(() => "");
    peak = Math.max(peak, Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1024);
  }, 20);
  return () => {
    clearInterval(timer);
    return peak;
  };
}
