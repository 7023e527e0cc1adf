// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { DEFAULT_CONFIG } from "../src/config.ts";
import { explain, faultOf } from "../src/errors.ts";
import { Connection } from "../src/libvirt/connection.ts";
import { LibvirtError, VIR_ERR } from "../src/libvirt/error.ts";
import type { MachineDomain } from "../src/machine/domain_xml.ts";
import { newOwner } from "../src/machine/owner.ts";
import { startMachine } from "../src/machine/start.ts";
import type { Template } from "../src/machine/template.ts";
import { newRecord } from "../src/stages/new_machine.ts";
import { handle, TestLibvirtd } from "./test_libvirtd.ts";
import { JOB } from "./test_stage.ts";

const TEMPLATE: Template = {
  ...{ pool: "base_imgs", volume: "lite.qcow2", path: "/nonexistent/lite.qcow2" },
  ...{ format: "qcow2", capacityBytes: 1024 ** 3, modified: "" },
};

async function newMachine(): Promise<MachineDomain> {
  const settings = { ...DEFAULT_CONFIG.machine, domainType: "qemu" };
  const login = { key: { privateKey: "", publicKey: "", file: "" }, hostKey: null };
  const ofRecord = { template: "lite", login, settings, card: null };
  return {
    ...{ name: "m", record: newRecord(await newOwner(JOB), ofRecord), settings },
    ...{ filter: null, card: null, overlayPath: "/nonexistent/m", consolePath: "/nonexistent/c" },
    ...{ seedPath: null, credentialPath: null, nvramPath: null },
  };
}

/** As libvirt 9.0 says it, with the errno that the kernel gave. */
function kernelSays(words: string, errno: number): LibvirtError {
  return new LibvirtError("virDomainCreateXML", `failed to load cgroup BPF prog: ${words}`, {
    ...{ code: VIR_ERR.SYSTEM_ERROR, errno },
  });
}

const AGAIN = kernelSays("Resource temporarily unavailable", 11);
const NO_MEMORY = kernelSays("Cannot allocate memory", 12);

/** Starts a machine where libvirt fails so first, and gives how often it was asked. */
async function start(
  errors: readonly LibvirtError[],
  signal = new AbortController().signal,
): Promise<{ readonly asked: number; readonly error: unknown }> {
  let asked = 0;
  await using libvirtd = new TestLibvirtd({
    DOMAIN_CREATE_XML: () => {
      const error = errors[asked++];
      if (error !== undefined) throw error;
      return handle("m", 1);
    },
  });
  await using connection = await Connection.open(libvirtd.uri);
  try {
    using _ = await startMachine(connection, await newMachine(), { template: TEMPLATE, signal });
    return { asked, error: null };
  } catch (error) {
    return { asked, error };
  }
}

Deno.test("a machine starts at last where the kernel tells libvirt to try again", async () => {
  assert.deepEqual(await start([AGAIN, AGAIN]), { asked: 3, error: null });
});

Deno.test("what the kernel says again and again fails the start, with its words", async () => {
  const { asked, error } = await start(Array(100).fill(AGAIN));
  assert.equal(asked, 5);
  assert.equal(faultOf(error), "start");
  assert.match(explain(error), /^Cannot start the machine "m"\nbecause: .* cgroup BPF prog: Res/);
});

Deno.test("a start is tried once where another failure comes, or nobody needs it any more", async () => {
  assert.equal((await start([NO_MEMORY])).asked, 1);
  assert.equal((await start([AGAIN, NO_MEMORY, AGAIN])).asked, 2);
  const { asked, error } = await start([AGAIN], AbortSignal.abort());
  assert.equal(asked, 1);
  assert.match(explain(error), /temporarily unavailable/);
});
