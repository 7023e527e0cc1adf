// SPDX-License-Identifier: GPL-2.0-or-later
import { loadLibvirt } from "../../ffi/libvirt.ts";
import { loadLibvirtQemu } from "../../ffi/libvirt_qemu.ts";
import { loadNetlink } from "../../ffi/netlink.ts";
import { loadProc } from "../../ffi/proc.ts";
import { Connection, type ConnectionOptions } from "../../src/libvirt/connection.ts";

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
