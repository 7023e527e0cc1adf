// SPDX-License-Identifier: GPL-2.0-or-later
import type { CommandEnd } from "../../src/guest/command_streams.ts";
import { findMaster } from "../../src/guest/master/client.ts";
import { SshConnection } from "../../src/guest/ssh_connection.ts";
import { sleep } from "../../src/wait.ts";
import type { Flood } from "./flood.ts";
import { TestGuest } from "./test_guest.ts";
import { makeAttemptDir, MasterProcess, masterTask } from "./test_master.ts";

const PROCESS = new URL("flood_process.ts", import.meta.url).pathname;

/** The peak memory, in MiB, of a process that a guest floods and whose output is not read. */
export async function peakOf(flood: Flood): Promise<number> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const path = `${directory}/guest`; // the buffers of TCP would take what is to be seen
  await using guest = await TestGuest.start({ flood, path });
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-all", PROCESS, path],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  try {
    const stdin = child.stdin.getWriter();
    await stdin.write(new TextEncoder().encode(guest.privateKey));
    await stdin.close();
    await guest.flooded;
    return await peakMib(child.pid);
  } finally {
    child.kill("SIGKILL");
    await child.status;
    await child.stdout.cancel();
    await Deno.remove(directory, { recursive: true });
  }
}

async function peakMib(pid: number): Promise<number> {
  const status = await Deno.readTextFile(`/proc/${pid}/status`);
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) / 1024;
}

/** How a command ends that sends so much data, and how many bytes of it came to a log that at first stands still. */
export async function takenAfter(
  stillMs: number,
  flood: Flood,
): Promise<CommandEnd & { readonly taken: number }> {
  await using guest = await TestGuest.start({ flood });
  const options = { timeoutMs: 15_000, signal: new AbortController().signal };
  using ssh = await SshConnection.open(guest.login, options);
  let taken = 0;
  const stdout = async (bytes: Uint8Array): Promise<void> => {
    if (taken === 0) await sleep(stillMs);
    taken += bytes.length;
  };
  const end = await ssh.run("true", { input: new Uint8Array(), stdout, stderr: stdout });
  return { ...end, taken };
}

/** As {@linkcode peakOf}, of a connection master whose `run` takes nothing. */
export async function peakOfMaster(flood: Flood): Promise<number> {
  const directory = makeAttemptDir();
  await using guest = await TestGuest.start({ flood });
  await using master = await MasterProcess.start(guest, masterTask(directory));
  const text = new TextEncoder().encode("true");
  using session = await findMaster(master.task.socket, { machine: "m", bytes: text.length });
  if (session === null) throw new Error("there is no master");
  const never = (): Promise<void> => new Promise(() => {});
  const end = new AbortController();
  session.run(text, { stdout: never, stderr: never }, end.signal).catch(() => {});
  await guest.flooded;
  const peak = await peakMib(master.child.pid);
  await Deno.remove(directory, { recursive: true });
  return peak;
}
