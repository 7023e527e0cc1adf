// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { isLibvirtError, VIR_ERR } from "../../src/libvirt/error.ts";
import { Network } from "../../src/libvirt/network.ts";
import { openTestHost } from "../fakes/test_host.ts";

Deno.test("a network keeps a host's address, and none twice", async () => {
  const connection = await openTestHost();
  {
    using network = await Network.lookup(connection, "default");
    await network.addDhcpHost('<host mac="52:54:00:00:00:09" ip="127.99.0.9"/>', 0);
    assert.match(await network.xml(), /<host mac='52:54:00:00:00:09' ip='127\.99\.0\.9'\/>/);
    for (const [mac, ip] of [["09", "8"], ["08", "9"]]) {
      await assert.rejects(
        network.addDhcpHost(`<host mac="52:54:00:00:00:${mac}" ip="127.99.0.${ip}"/>`, 0),
        (error) => isLibvirtError(error, VIR_ERR.OPERATION_INVALID),
      );
    }
  }
  assert.equal(await connection.close(), 0, "a handle is left");
});
