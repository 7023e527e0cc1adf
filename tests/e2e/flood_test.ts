// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { SshConnection } from "../../src/guest/ssh.ts";
import { sleep } from "../../src/wait.ts";
import { DATA_BYTES, type FloodKind, FLOODS } from "../flood.ts";
import { peakOf } from "../flooded.ts";
import { TestGuest } from "../test_guest.ts";
import { e2eTest } from "./bed.ts";

const SECONDS = 30;
/** Honest output at full speed takes 150: V8 lets so much lie before it looks for garbage. */
const MOST_MIB = 200;
/** Longer than keepalives may be unanswered. */
const STILL_MS = 150_000;

e2eTest("half a minute of what a hostile SSH server sends takes less than 200 MiB", async (t) => {
  for (const kind of Object.keys(FLOODS) as FloodKind[]) {
    await t.step(kind, async () => {
      const peak = await peakOf({ kind, seconds: SECONDS });
      assert(peak < MOST_MIB, `${peak} MiB`);
    });
  }
}, { thorough: true });

e2eTest("a log that stands still for minutes loses no guest, whatever it sent", async () => {
  await using guest = await TestGuest.start({ flood: { kind: "data", count: 1000, ends: true } });
  const { port, privateKey } = guest;
  const login = { address: "127.0.0.1", port, user: "gitlab-runner", privateKey };
  const options = { timeoutMs: 15_000, signal: new AbortController().signal };
  using ssh = await SshConnection.open({ ...login, channel: null, hostKey: null }, options);
  let taken = 0;
  const stdout = async (bytes: Uint8Array): Promise<void> => {
    if (taken === 0) await sleep(STILL_MS);
    taken += bytes.length;
  };
  const end = await ssh.run("true", { input: new Uint8Array(), stdout, stderr: stdout });
  assert.deepEqual({ ...end, taken }, { status: 0, signal: null, taken: 1000 * DATA_BYTES });
}, { thorough: true });
