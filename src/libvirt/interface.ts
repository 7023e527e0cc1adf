// SPDX-License-Identifier: GPL-2.0-or-later
import { cBytes, pointerAt } from "../../ffi/memory.ts";

export interface Interface {
  /** Lower case, with colons; empty if unknown. */
  readonly mac: string;
  /** IPv4 and IPv6, as the source lists them: of a guest's agent, any words. */
  readonly addresses: readonly string[];
}

const MAC_BYTES = 17;
const MOST_ADDRESS_BYTES = 46; // INET6_ADDRSTRLEN: what is longer is no address

/**
 * Reads a `virDomainInterface` (libvirt-domain.h): name at 0, hwaddr at 8, naddrs at 16, addrs at
 * 24, an array of `virDomainIPAddress` of 24 bytes: type at 0, addr at 8, prefix at 16.
 */
export function readInterface(pointer: Deno.PointerObject): Interface {
  const view = new Deno.UnsafePointerView(pointer);
  const mac = shortText(view.getPointer(8), MAC_BYTES);
  const count = view.getUint32(16);
  const array = view.getPointer(24);
  const addresses: string[] = [];
  for (let i = 0; array !== null && i < count; i++) {
    addresses.push(shortText(pointerAt(array, i * 24 + 8), MOST_ADDRESS_BYTES));
  }
  return { mac: mac.toLowerCase(), addresses };
}

function shortText(pointer: Deno.PointerValue, mostBytes: number): string {
  return pointer === null ? "" : new TextDecoder().decode(cBytes(pointer, mostBytes));
}
