// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { flushConnections } from "../../ffi/conntrack.ts";
import { loadNetlink } from "../../ffi/netlink.ts";
import { asNobody, canBeNobody } from "../fakes/test_nobody.ts";

loadNetlink(); // what is loaded in a test is taken for a leak of it

/** Whether the kernel tracks connections: makes one from this address, and looks. */
async function isTracked(address: string): Promise<boolean> {
  const socket = createSocket("udp4");
  await new Promise<void>((resolve) => socket.bind(0, address, resolve));
  await new Promise((resolve) => socket.send("x", 9, "127.0.0.8", resolve));
  socket.close();
  return await Deno.readTextFile("/proc/net/nf_conntrack")
    .then((table) => table.includes(`src=${address} dst=127.0.0.8`), () => false);
}

Deno.test("the kernel forgets the connections of one address, where it tracks any", async () => {
  const isTracking = await isTracked("127.0.0.9");
  const counts = ["127.0.0.7", "127.0.0.9", "127.0.0.9"].map(flushConnections);
  if (isTracking) assert.deepEqual(counts, [0, 1, 0]);
  else assert(counts.every((count) => count === 0 || count === null), String(counts));
});

Deno.test({
  name: "with CAP_NET_ADMIN alone, the kernel forgets connections, and without it none",
  ignore: !canBeNobody,
  fn: async () => {
    const isTracking = await isTracked("127.0.0.10");
    const code = `
      import { flushConnections } from "ffi/conntrack.ts";
      console.log(flushConnections("127.0.0.10"));
    `;
    assert.equal(await asNobody(code, { capabilities: [] }), "null");
    const forgotten = await asNobody(code, { capabilities: ["net_admin"] });
    if (isTracking) assert.equal(forgotten, "1");
    else assert.match(forgotten, /^(0|null)$/);
  },
});
