// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { isSeenByPeers, loadPeers } from "../../ffi/peers.ts";
import { loadProc } from "../../ffi/proc.ts";

loadProc();
loadPeers(); // what is loaded in a test is taken for a leak of it

/** A process that listens at this socket, until it is disposed of. */
async function listenerAt(path: string, wrapper: readonly string[]): Promise<AsyncDisposable> {
  const source = `Deno.listen({ transport: "unix", path: ${JSON.stringify(path)} }); ` +
    "console.log(); setInterval(() => {}, 1000);";
  const [program = "", ...args] = [...wrapper, Deno.execPath(), "eval", source];
  const child = new Deno.Command(program, { args, stdout: "piped" }).spawn();
  const stdout = child.stdout.getReader();
  await stdout.read();
  return {
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL"); // unshare obeys no other signal
      await stdout.cancel();
      await child.status;
      Deno.removeSync(path);
    },
  };
}

async function isSeenBy(path: string): Promise<boolean> {
  using _ = await Deno.connect({ transport: "unix", path });
  return isSeenByPeers();
}

Deno.test("who listens to a process sees it by its number, but for one in another namespace", async () => {
  const directory = Deno.makeTempDirSync({ prefix: "libvirt-gci-" });
  const path = `${directory}/socket`;
  try {
    {
      await using _ = await listenerAt(path, []);
      assert.equal(await isSeenBy(path), true);
    }
    if (Deno.uid() !== 0) return; // another namespace takes root
    await using _ = await listenerAt(path, ["unshare", "--pid", "--fork", "--kill-child"]);
    assert.equal(await isSeenBy(path), false);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});
