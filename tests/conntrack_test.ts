// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { forgetConnections } from "../ffi/conntrack.ts";

Deno.test("the kernel forgets the connections of one address, where it tracks any", async () => {
  const socket = createSocket("udp4");
  await new Promise<void>((resolve) => socket.bind(0, "127.0.0.9", resolve));
  await new Promise((resolve) => socket.send("x", 9, "127.0.0.8", resolve));
  socket.close();
  const isTracking = await Deno.readTextFile("/proc/net/nf_conntrack")
    .then((table) => table.includes("src=127.0.0.9 dst=127.0.0.8"), () => false);
  const counts = ["127.0.0.7", "127.0.0.9", "127.0.0.9"].map(forgetConnections);
  if (isTracking) assert.deepEqual(counts, [0, 1, 0]);
  else assert(counts.every((count) => count === 0 || count === null), String(counts));
});
