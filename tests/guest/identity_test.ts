// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { Agent } from "../../src/guest/agent.ts";
import {
  authorizeUser,
  exerciseSsh,
  requireBooted,
  stopProcesses,
  takeIdentity,
} from "../../src/guest/identity.ts";
import { LibvirtError, VIR_ERR } from "../../src/libvirt/error.ts";

const IDENTITY = {
  hostName: "it's mine",
  hostKey: { privateKey: "PRIVATE\nKEY\n", publicKey: "ssh-ed25519 A x", fingerprint: "f" },
  publicKey: "ssh-ed25519 B y",
  user: "gitlab-runner",
};

/** An agent whose scripts end like this, and what it was asked to run. */
function fakeAgent(
  ends: readonly (Record<string, unknown> | Error)[],
): { readonly agent: Agent; readonly scripts: string[]; readonly args: unknown[] } {
  const left = [...ends];
  const scripts: string[] = [];
  const args: unknown[] = [];
  const agent = (command: object): Promise<unknown> => {
    const { execute, arguments: given } = command as {
      execute: string;
      arguments: Record<string, unknown>;
    };
    if (execute === "guest-exec") {
      scripts.push(atob(String(given["input-data"])));
      args.push(given["path"], ...given["arg"] as unknown[]);
      return Promise.resolve({ pid: 7 });
    }
    assert.deepEqual([execute, given], ["guest-exec-status", { pid: 7 }]);
    const end = left.length > 1 ? left.shift() : left[0];
    return end instanceof Error ? Promise.reject(end) : Promise.resolve(end);
  };
  return { agent, scripts, args };
}

const WELL = { exited: true, exitcode: 0 };

Deno.test("a guest's identity is in no argument, which its agent logs, and is never the same", async () => {
  const { agent, scripts, args } = fakeAgent([{ exited: false }, WELL]);
  await (await takeIdentity(agent, IDENTITY))();
  await (await takeIdentity(agent, IDENTITY))();
  assert.deepEqual(new Set(args), new Set(["/bin/sh", "-s"]));
  const [first = "", second = ""] = scripts;
  for (const name of ["entropy", "id"]) {
    const value = new RegExp(`^${name}='([0-9a-f]+)'$`, "m");
    assert.notEqual(value.exec(first)?.[1], value.exec(second)?.[1]);
  }
  assert(first.includes("name='it'\\''s mine'\n"));
  assert(first.includes("private_key='PRIVATE\nKEY\n'\n"));
});

Deno.test("sh understands each script that a guest is to run", async () => {
  const { agent, scripts } = fakeAgent([WELL]);
  await (await takeIdentity(agent, IDENTITY))();
  await takeIdentity(agent, { ...IDENTITY, publicKey: null });
  assert.match(scripts.at(-1) ?? "", /\nkill -CONT -1\n$/, "it would never go on");
  await authorizeUser(agent, IDENTITY, new AbortController().signal);
  await exerciseSsh(agent, 22);
  await requireBooted(agent, 22);
  await stopProcesses(agent);
  for (const script of scripts) {
    const sh = new Deno.Command("sh", { args: ["-n"], stdin: "piped", stderr: "piped" }).spawn();
    const writer = sh.stdin.getWriter();
    await writer.write(new TextEncoder().encode(script));
    await writer.close();
    const { code, stderr } = await sh.output();
    assert.equal(code, 0, new TextDecoder().decode(stderr));
  }
});

Deno.test("what a guest cannot do is told in its words, and a busy agent is asked again", async () => {
  const lacking = { exited: true, exitcode: 1, "err-data": btoa("no\nperl") };
  await assert.rejects(
    (await takeIdentity(fakeAgent([new Error("busy"), lacking]).agent, IDENTITY))(),
    /could not change its identity: no perl$/,
  );
});

Deno.test("nobody waits for a script in a guest that is gone, without libvirt or after a cancel", async () => {
  for (const options of [{ code: VIR_ERR.NO_DOMAIN }, { code: 1, isLost: true }]) {
    const gone = new LibvirtError("virDomainQemuAgentCommand", "gone", options);
    await assert.rejects((await takeIdentity(fakeAgent([gone]).agent, IDENTITY))(), gone);
  }

  const controller = new AbortController();
  const { agent } = fakeAgent([{ exited: false }]);
  const waiting = (await takeIdentity(agent, IDENTITY))(controller.signal);
  controller.abort(new Error("cancelled"));
  await assert.rejects(waiting, /^Error: cancelled$/);
});
