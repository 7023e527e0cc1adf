// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { isLibvirtError, VIR_ERR } from "../src/libvirt/error.ts";
import { openTestHost } from "./test_host.ts";

const HOST = '<host mac="52:54:00:00:00:07" ip="127.99.0.7"/>';

Deno.test("a network keeps a host's address until it is removed, and none twice", async () => {
  const connection = await openTestHost();
  {
    using network = await connection.lookupNetwork("default");
    await network.addDhcpHost(HOST, 0);
    assert.match(await network.xml(), /<host mac='52:54:00:00:00:07' ip='127\.99\.0\.7'\/>/);
    const others = [
      "mac='52:54:00:00:00:07' ip='127.99.0.8'",
      "mac='52:54:00:00:00:08' ip='127.99.0.7'",
    ];
    for (const other of others) {
      await assert.rejects(
        network.addDhcpHost(`<host ${other}/>`, 0),
        (error) => isLibvirtError(error, VIR_ERR.OPERATION_INVALID),
      );
    }
    await network.removeDhcpHost(HOST, 0);
    assert.doesNotMatch(await network.xml(), /<host/);
    await assert.rejects(
      network.removeDhcpHost(HOST, 0),
      (error) => isLibvirtError(error, VIR_ERR.OPERATION_INVALID),
    );
  }
  assert.equal(await connection.close(), 0, "a handle is left");
});

Deno.test("the networks that are started have their names", async () => {
  await using connection = await openTestHost();
  const networks = await connection.activeNetworks();
  assert.deepEqual(networks.map(({ name }) => name), ["default"]);
  for (const network of networks) network[Symbol.dispose]();
});
