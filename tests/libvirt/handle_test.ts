// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { type Pointer, symbols } from "../../ffi/libvirt.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { FREE } from "../../src/libvirt/handle.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { openTestHost } from "../fakes/test_host.ts";

/** What the connection does from now on, in its order: what is called, and that a handle is freed. */
function watch(connection: Connection): string[] {
  const seen: string[] = [];
  const { call, release } = connection;
  connection.call = (async (...args: Parameters<typeof call>) => {
    seen.push(args[0]);
    const result = await call.apply(connection, args);
    seen.push(`${args[0]} ended`);
    return result;
  }) as typeof call;
  connection.release = (...args) => {
    seen.push(args[0]);
    release.apply(connection, args);
  };
  return seen;
}

Deno.test("a handle that was disposed of calls nothing any more, and that is a mistake of ours", async () => {
  await using connection = await openTestHost();
  const domain = await Domain.lookup(connection, "somebody");
  using pool = await StoragePool.lookup(connection, "base_imgs");
  const volume = await pool.lookupVolume("debian-12.qcow2");
  domain[Symbol.dispose]();
  volume[Symbol.dispose]();
  const seen = watch(connection);
  const mistakes = [
    () => domain.xml(),
    () => domain.isActive(),
    () => domain.state(),
    () => volume.path(),
    () => volume.download(0),
    () => pool.copyVolume("copy", "<volume/>", volume),
  ];
  for (const use of mistakes) {
    await assert.rejects(use, { name: "Error", message: /The handle of a vir\w+ was disposed of/ });
  }
  assert.deepEqual(seen.filter((name) => !name.startsWith("virStream")), []);
});

Deno.test("a handle is freed when the last call on it has ended, and once", async () => {
  const connection = await openTestHost();
  const domain = await Domain.lookup(connection, "somebody");
  const seen = watch(connection);
  const answers = [domain.xml(), domain.isActive()];
  domain[Symbol.dispose]();
  domain[Symbol.dispose]();
  await assert.rejects(domain.xml(), /disposed of/);
  assert.match(String((await Promise.all(answers))[0]), /<name>somebody</);
  assert.deepEqual(seen, [
    "virDomainGetXMLDesc",
    "virDomainIsActive",
    "virDomainGetXMLDesc ended",
    "virDomainIsActive ended",
    "virDomainFree",
  ]);
  assert.equal(await connection.close(), 0);
});

Deno.test("a list of domains is disposed of with all that it lists", async () => {
  const connection = await openTestHost();
  {
    using domains = await Domain.listAll(connection);
    assert.deepEqual(domains.map(({ name }) => name), ["somebody"]);
  }
  assert.equal(await connection.close(), 0);
});

Deno.test("who was lent a handle may call on until it is done", async () => {
  const connection = await openTestHost();
  {
    using pool = await StoragePool.lookup(connection, "base_imgs");
    const volume = await pool.lookupVolume("debian-12.qcow2");
    const seen = watch(connection);
    const ask = async (pointer: Pointer<"virStorageVol">): Promise<void> => {
      await connection.call("virStorageVolGetInfo", pointer, new BigUint64Array(3));
    };
    const asking = volume.lend(async (pointer) => {
      await ask(pointer);
      await ask(pointer);
    });
    volume[Symbol.dispose]();
    await asking;
    assert.deepEqual(seen.slice(-2), ["virStorageVolGetInfo ended", "virStorageVolFree"]);
  }
  assert.equal(await connection.close(), 0);
});

Deno.test("a connection that was closed calls nothing any more, and handles left are freed", async () => {
  const connection = await openTestHost();
  const domain = await Domain.lookup(connection, "somebody");
  const asked = domain.isActive();
  assert.equal(await connection.close(), 1);
  assert(await asked);
  const closed = { name: "Error", message: /vir\w+ was called on a connection that was closed/ };
  await assert.rejects(Domain.find(connection, "somebody"), closed);
  await assert.rejects(domain.xml(), closed);
  domain[Symbol.dispose]();
  await connection[Symbol.asyncDispose]();
});

Deno.test("each function that gives a handle back is in the table", () => {
  const freed = Object.keys(symbols).filter((name) => /^vir[A-Z]\w+Free$/.test(name));
  const ofParts = [
    "virDomainInterfaceFree",
    "virNetworkDHCPLeaseFree",
    "virDomainStatsRecordListFree",
  ];
  assert.deepEqual(
    freed.filter((name) => !ofParts.includes(name)).sort(),
    Object.values(FREE).sort(),
  );
});
