// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";

/** What systemd.service(5) lets a command of the unit take, in seconds; null where the unit does not say. */
async function secondsIn(unit: string, key: string): Promise<number | null> {
  const text = await Deno.readTextFile(new URL(`../systemd/${unit}`, import.meta.url));
  const [, number, of = ""] = new RegExp(`^${key}=(\\d+)(min|h)$`, "m").exec(text) ?? [];
  const seconds: Readonly<Record<string, number>> = { min: 60, h: 3600 };
  return number === undefined ? null : Number(number) * (seconds[of] ?? NaN);
}

// Without a word, what comes after the start has 90 s, and the start itself has no end.
Deno.test("systemd lets warm images and waiting machines be made in their time, and ends what hangs", async () => {
  for (const key of ["TimeoutStartSec", "TimeoutStopSec"]) {
    const seconds = await secondsIn("libvirt-gci-warm.service", key);
    assert(seconds !== null && seconds > 3600, `${key} is ${seconds} s`);
  }
  const seconds = await secondsIn("libvirt-gci-gc.service", "TimeoutStartSec");
  assert(seconds !== null && seconds >= 60, `${seconds} s for gc`);
});

Deno.test("gc is given none of the host's devices, not even KVM", async () => {
  const unit = new URL("../systemd/libvirt-gci-gc.service", import.meta.url);
  const lines = (await Deno.readTextFile(unit)).split("\n").filter((line) => /^Device/.test(line));
  assert.deepEqual(lines, ["DevicePolicy=closed"]);
});
