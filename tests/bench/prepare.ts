// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { Connection } from "../../src/libvirt/connection.ts";
import { ADDRESS_SOURCE, Domain } from "../../src/libvirt/domain.ts";
import { sleep } from "../../src/wait.ts";
import { cleanUpAll } from "./machines.ts";
import { median, report } from "./measure.ts";
import { interrupted } from "./program.ts";

const MACHINE = "gci-bench-prepare";

/**
 * What prepare adds to the time that the same machine needs from virDomainCreateXML to its SSH
 * banner, which an observer beside it takes from the same boot.
 */
export async function measurePrepare(program: readonly string[], runs: number): Promise<void> {
  const added: number[] = [];
  const needed: number[] = [];
  for (let i = 0; i < runs; i++) {
    const { total, boot } = await measureOnce(program);
    added.push(total - boot);
    needed.push(boot);
  }
  report(
    "prepare",
    `adds ${(median(added) / 1000).toFixed(2)} s to the ${(median(needed) / 1000).toFixed(2)} s ` +
      "from virDomainCreateXML to the SSH banner",
    { goal: "0.5 s", met: median(added) <= 500 },
  );
}

async function measureOnce(
  ours: readonly string[],
): Promise<{ total: number; boot: number }> {
  interrupted.throwIfAborted();
  const start = performance.now();
  const [program = "", ...args] = ours;
  const child = new Deno.Command(program, {
    args: [...args, "--debug", "prepare", "--distro", "lite", "--machine", MACHINE],
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  try {
    const banner = timeOfBanner();
    const created = await timeOfCreate(child.stderr);
    const { code } = await child.status;
    const total = performance.now() - start;
    assert.equal(code, 0);
    return { total, boot: await banner - created };
  } finally {
    await cleanUpAll(ours, [MACHINE]);
  }
}

/** When virDomainCreateXML began: `--debug` says what it took when it ends. */
async function timeOfCreate(stderr: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<number> {
  let text = "";
  let created = NaN;
  for await (const part of stderr.pipeThrough(new TextDecoderStream())) {
    text += part;
    const took = /virDomainCreateXML ([\d.]+) ms\n/.exec(text)?.[1];
    if (took !== undefined && Number.isNaN(created)) created = performance.now() - Number(took);
  }
  assert(!Number.isNaN(created), text);
  return created;
}

/** When the machine's SSH server first says who it is. */
async function timeOfBanner(): Promise<number> {
  await using connection = await Connection.open("qemu:///system");
  for (;;) {
    await sleep(10);
    using domain = await Domain.find(connection, MACHINE);
    const cards = await domain?.interfaceAddresses(ADDRESS_SOURCE.LEASE).catch(() => []) ?? [];
    const address = cards.flatMap(({ addresses }) => addresses)[0];
    if (address !== undefined && await hasBanner(address)) return performance.now();
  }
}

async function hasBanner(hostname: string): Promise<boolean> {
  try {
    using socket = await Deno.connect({ hostname, port: 22 });
    const bytes = new Uint8Array(4);
    await socket.read(bytes);
    return new TextDecoder().decode(bytes) === "SSH-";
  } catch {
    return false;
  }
}
