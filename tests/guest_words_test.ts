// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { Connection } from "../src/libvirt/connection.ts";
import type { Domain } from "../src/libvirt/domain.ts";
import { TestLibvirtd, xdr } from "./test_libvirtd.ts";

type Answers = ConstructorParameters<typeof TestLibvirtd>[0];

/** Gives the test a domain whose guest says this, through libvirt. */
async function withDomain(
  answers: Answers,
  test: (domain: Domain) => Promise<void>,
): Promise<void> {
  await using libvirtd = new TestLibvirtd(answers);
  await using connection = await Connection.open(libvirtd.uri);
  using domain = await connection.lookupDomain("m");
  await test(domain);
}

/** An answer of the agent, of arrays in arrays. */
function nested(depth: number): Uint8Array<ArrayBuffer> {
  return xdr(1, `{"return":${"[".repeat(depth)}${"]".repeat(depth)}}`);
}

Deno.test("an agent's answer of megabytes is none, and costs no memory", async () => {
  await withDomain({ QEMU_AGENT_COMMAND: () => nested(1_900_000) }, async (domain) => {
    const before = Deno.memoryUsage().heapUsed;
    await assert.rejects(domain.agentCommand({ execute: "guest-info" }, 1), {
      name: "LibvirtError",
      message: /the answer has more than 65536 bytes/,
    });
    assert(Deno.memoryUsage().heapUsed - before < 16 * 1024 ** 2);
  });
});

Deno.test("an agent's answer of 64 KiB is what it says", async () => {
  const answerOf = (bytes: number): string => `{"return":"${"a".repeat(bytes - 13)}"}`;
  for (const [bytes, fits] of [[65_536, true], [65_537, false]] as const) {
    const answer = () => xdr(1, answerOf(bytes));
    await withDomain({ QEMU_AGENT_COMMAND: answer }, async (domain) => {
      const asked = domain.agentCommand({ execute: "guest-info" }, 1);
      if (fits) assert.equal(await asked, "a".repeat(bytes - 13));
      else await assert.rejects(asked);
    });
  }
});
