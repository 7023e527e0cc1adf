// SPDX-License-Identifier: GPL-2.0-or-later
import { loadLibvirt } from "../../ffi/libvirt.ts";
import { loadLibvirtQemu } from "../../ffi/libvirt_qemu.ts";
import { loadNetlink } from "../../ffi/netlink.ts";
import { loadProc } from "../../ffi/proc.ts";
import { Connection, type ConnectionOptions } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";

// Here, so that no test is blamed for the libraries that it loads first.
loadLibvirt();
loadLibvirtQemu();
loadNetlink();
loadProc();

/** The URI of {@linkcode openTestHost}. */
export const TEST_HOST_URI = `test://${new URL("../data/host.xml", import.meta.url).pathname}`;

/**
 * A hypervisor of its own in libvirt's test driver: the network `default`, whose addresses are of
 * 127.99.0.0/24, and `bridged`, where libvirt serves none; the pools `base_imgs`, with two templates, and `libvirt-gci`; and a domain
 * `somebody` that is not ours.
 */
export function openTestHost(options: ConnectionOptions = {}): Promise<Connection> {
  return Connection.open(TEST_HOST_URI, options);
}

/** What is on the host: domains, and the volumes of both pools. */
export async function inventory(connection: Connection): Promise<string[]> {
  using domains = await Domain.listAll(connection);
  const names = domains.map(({ name }) => name);
  for (const poolName of ["libvirt-gci", "base_imgs"]) {
    using pool = await StoragePool.lookup(connection, poolName);
    names.push(...(await pool.volumeNames()).map((name) => `${poolName}/${name}`));
  }
  return names.sort();
}
