// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { Transfer, transferText } from "../src/transfer.ts";
import { sleep } from "../src/wait.ts";

const MIB = 1024 ** 2;

for (
  const [state, text] of [
    [
      { bytes: 312 * MIB, total: 2048 * MIB, moved: 312 * MIB, seconds: 3 },
      "312 of 2048 MiB (15 %), 104 MiB/s, 17 s left",
    ],
    [
      { bytes: 1.5 * MIB, total: 3 * MIB, moved: MIB, seconds: 2 },
      "1 of 3 MiB (50 %), 0.5 MiB/s, 3 s left",
    ],
    [{ bytes: 900 * MIB, total: 1000 * MIB, moved: 0, seconds: 2 }, "900 of 1000 MiB (90 %)"],
    [{ bytes: 5 * MIB, total: null, moved: 5 * MIB, seconds: 1 }, "5 MiB, 5.0 MiB/s"],
    [{ bytes: 0, total: 0, moved: 0, seconds: 0 }, "0 of 0 MiB (0 %)"],
  ] as const
) {
  Deno.test(`a transfer is told as ${text}`, () => assert.equal(transferText(state), text));
}

Deno.test("a transfer is shown in place at a terminal, and taken away in the end", async () => {
  const shown: (string | null)[] = [];
  const log = (line: string) => assert.fail(line);
  {
    using transfer = new Transfer('Uploading "t"', { log, progress: (it) => shown.push(it) }, 10);
    await sleep(40);
    assert.deepEqual(shown, [], "before anything is known");
    transfer.update(100 * MIB, 200 * MIB); // were there before
    transfer.update(150 * MIB, 200 * MIB);
    while (shown.length === 0) await sleep(5);
  }
  assert.match(
    shown[0] ?? "",
    /^Uploading "t": 150 of 200 MiB \(75 %\), [\d.]+ MiB\/s, \d+ \w+ left$/,
  );
  assert.equal(shown.at(-1), null);
});

Deno.test("a transfer is a line from time to time elsewhere", async () => {
  const lines: string[] = [];
  const log = (line: string) => void lines.push(line);
  {
    using transfer = new Transfer('Uploading "t"', { log, progress: null }, 10);
    transfer.update(50 * MIB, 200 * MIB);
    while (lines.length < 2) await sleep(5);
  }
  const { length } = lines;
  await sleep(40);
  assert.equal(lines.length, length);
  assert.match(lines[0] ?? "", /^Uploading "t": 50 of 200 MiB \(25 %\)$/);
});
