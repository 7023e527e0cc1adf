// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * The figures that libvirt-gci is to reach, each measured beside what it is compared to, in one run.
 * LIBVIRT_GCI names the compiled program; without it, main.ts is measured, which starts slower.
 */

import assert from "node:assert/strict";
import { PROGRAM, settingsFile, TESTBED } from "../e2e/bed.ts";
import { measureCrowd } from "./crowd.ts";
import { compare, median, report } from "./measure.ts";
import { measurePrepare } from "./prepare.ts";
import { measureWarm } from "./warm.ts";

const settings = settingsFile();
const OURS = [...PROGRAM, "--config", settings.path];
const MACHINE = "gci-bench";
const OUTPUT_BYTES = 200_000_000;

/** Runs a program to its end and throws away what it prints. Gives its most memory, in MiB. */
async function run([program, ...args]: readonly string[], input = ""): Promise<number> {
  const child = new Deno.Command(program ?? "", {
    ...{ args, stdin: "piped", stdout: "piped", stderr: "inherit" },
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input));
  await writer.close();
  const watch = watchMemory(child.pid);
  await child.stdout.pipeTo(new WritableStream({ write() {} }));
  const { code } = await child.status;
  assert.equal(code, 0, `${program} ${args.join(" ")}`);
  return watch();
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

async function measureStart(): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-bench-" });
  try {
    await Deno.writeTextFile(`${directory}/empty.js`, 'console.log("0.1.0");\n');
    const args = ["compile", "--quiet", "--no-check", "--no-code-cache", "-o", "empty", "empty.js"];
    const compiled = await new Deno.Command("deno", { args, cwd: directory }).output();
    if (!compiled.success) return console.log("No empty program could be compiled to compare with");
    const empty = [`${directory}/empty`];
    const { ours, theirs, ratio } = await compare(
      21,
      () => run([...PROGRAM, "--version"]),
      () => run(empty),
    );
    report(
      "--version",
      `${ours.toFixed(0)} ms, an empty program ${theirs.toFixed(0)} ms, ratio ${ratio.toFixed(2)}`,
      { goal: "1.2", met: ratio <= 1.2 },
    );
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** OpenSSH's client to the same guest, with the same key. */
async function openSshTo(machine: string): Promise<string[]> {
  const { stdout } = await new Deno.Command("virsh", {
    args: ["-c", "qemu:///system", "dumpxml", machine],
  }).output();
  const address = / address="([^"]+)"/.exec(new TextDecoder().decode(stdout))?.[1] ?? "";
  const options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"];
  return [
    ...["ssh", "-F", "/dev/null", "-i", TESTBED.key, "-o", "IdentitiesOnly=yes"],
    ...options.flatMap((option) => ["-o", option]),
    `gitlab-runner@${address}`,
  ];
}

async function measureRun(): Promise<void> {
  await run([...OURS, "prepare", "--distro", "lite", "--machine", MACHINE]);
  const script = await Deno.makeTempFile({ prefix: "libvirt-gci-bench-" });
  try {
    const ssh = await openSshTo(MACHINE);
    const memory: number[] = [];
    const empty = await compare(
      15,
      async () => memory.push(await run([...OURS, "run", "-m", MACHINE, "--script", script])),
      () => run([...ssh, "bash", "-s"]),
    );
    report(
      "run of an empty script",
      `${empty.ours.toFixed(0)} ms, OpenSSH ${empty.theirs.toFixed(0)} ms, ` +
        `ratio ${empty.ratio.toFixed(2)}`,
      { goal: "0.6", met: empty.ratio <= 0.6 },
    );
    const command = ["head", "-c", String(OUTPUT_BYTES), "/dev/zero"];
    const output = await compare(
      5,
      async () => memory.push(await run([...OURS, "run", "-m", MACHINE, "--", ...command])),
      () => run([...ssh, ...command]),
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
    await run([...OURS, "cleanup", "--machine", MACHINE]);
  }
}

try {
  await measureCrowd();
  await measureStart();
  await measureRun();
  await measurePrepare(OURS, 7);
  await measureWarm(PROGRAM, { templates: ["lite", "cloud"], runs: 11 });
} finally {
  settings[Symbol.dispose]();
}
Deno.exit(0);
