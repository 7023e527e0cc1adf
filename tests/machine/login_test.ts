// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { waitForSsh } from "../../src/guest/ready.ts";
import { createLogin, toHostName, volumeContents } from "../../src/machine/login.ts";
import { DEFAULT_CONFIG } from "../../src/settings/settings.ts";
import { merged } from "../fakes/merged.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import { testStage } from "../fakes/test_stage.ts";

Deno.test("--ssh-key-file is the key of a machine, whatever its template's login", async () => {
  await using connection = await openTestHost();
  await using guest = await TestGuest.start();
  using stage = testStage(connection, guest);
  const keyFile = await Deno.makeTempFile({ prefix: "libvirt-gci-test-" });
  await Deno.writeTextFile(keyFile, guest.privateKey);
  for (const login of ["template", "cloud-init"] as const) {
    const settings = merged(DEFAULT_CONFIG.machine, { ssh: { login, key: "/nonexistent" } });
    const { key } = await createLogin("m", { keys: { keyFile }, settings }, stage.host);
    assert.equal(key.privateKey, guest.privateKey);
  }
  await Deno.remove(keyFile);
});

Deno.test("a guest gets its user with the shell of the settings", async () => {
  await using connection = await openTestHost();
  await using guest = await TestGuest.start();
  using stage = testStage(connection, guest);
  for (const shell of ["bash", "sh"] as const) {
    const settings = merged(DEFAULT_CONFIG.machine, { guest: { shell } });
    const login = await createLogin("m", { keys: "own", settings }, stage.host);
    const { seed } = volumeContents("m", login, settings);
    assert(new TextDecoder().decode(seed ?? undefined).includes(`shell: "/bin/${shell}"`));
    await Deno.remove(login.key.file);
  }
});

Deno.test("a guest that shows another host key at first is waited for, as cloud-init changes it", async () => {
  await using guest = await TestGuest.start();
  const login = { ...guest.login, hostKey: "another" };
  const limits = { timeoutSeconds: 0.5, signal: new AbortController().signal, log: () => {} };
  await assert.rejects(
    waitForSsh(login, () => Promise.resolve(), limits),
    {
      message: /within 0.5 s: .*does not show the machine's host key/,
      advice: /^Set "ssh\.login" .* cloud-init.* did not install the keys/,
      fault: "host_key",
    },
  );
});

Deno.test("a host name has no dot, at which cloud-init would cut it", () => {
  assert.equal(toHostName("a.b_c-d"), "a-b-c-d");
});
