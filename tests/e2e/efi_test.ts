// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { call, e2eTest, type Settings, until } from "./bed.ts";

const WARM: Settings = {
  firmware: "efi",
  start: "warm",
  templates: { lite: { ssh: { login: "template" } } },
};

/** Its kernel is not signed. It boots for its RAM to be saved, is resumed, and boots again. */
e2eTest(
  "a machine with EFI firmware boots, is resumed, and boots again when its guest does",
  async () => {
    const machine = "gci-e2e-efi";
    await using undo = new AsyncDisposableStack();
    undo.defer(async () => {
      await call(["cleanup", "-m", machine]);
      await call(["warm", "--remove", "lite"], { settings: WARM });
    });
    await done(["warm", "lite"]);
    assert.match(await done(["prepare", "-d", "lite", "-m", machine]), /Resumed the machine/);
    const resumed = await bootId(machine);
    assert.match(resumed ?? "", /^[0-9a-f-]{36}\n$/);
    await done([
      "run",
      "-m",
      machine,
      "--",
      "sh",
      "-c",
      "(sleep 1; sudo reboot) >/dev/null 2>&1 &",
    ]);
    await until(async () => ![null, resumed].includes(await bootId(machine)), {
      what: "it boots again",
      quietSeconds: 30,
    });
  },
  { thorough: true },
);

/** Which boot of the machine, which has EFI firmware, this is; null while it cannot be reached. */
async function bootId(machine: string): Promise<string | null> {
  const script = "cd /sys/firmware/efi && cat /proc/sys/kernel/random/boot_id";
  const { status, stdout } = await call(["run", "-m", machine, "--", "sh", "-c", script]);
  return status === 0 ? stdout : null;
}

/** What the program says, which must not fail. */
async function done(args: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await call(args, { settings: WARM });
  assert.equal(status, 0, stderr);
  return stdout + stderr;
}
