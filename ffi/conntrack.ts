// SPDX-License-Identifier: GPL-2.0-or-later
import { concatenated } from "./memory.ts";
import {
  type Ask,
  type Attribute,
  attributesOf,
  type Bytes,
  errorOf,
  HEADER_BYTES,
  NETLINK,
  NLM_F,
  NLMSG,
  typeOf,
  withNetlink,
} from "./netlink.ts";

// The messages of linux/netfilter/nfnetlink_conntrack.h.
const CT_GET = 0x101; // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
const CT_DELETE = 0x102;
const CTA_TUPLE_ORIG = 1;
const CTA_TUPLE_REPLY = 2;
const CTA_ZONE = 18;
const CTA_TUPLE_IP = 1;
const AF_INET = 2;
const FAMILY_BYTES = 4; // struct nfgenmsg
const ENOENT = 2;

/**
 * Makes the kernel forget the IPv4 connections from and to this address. Gives how many there were, or
 * null if some are left. This takes CAP_NET_ADMIN and a kernel that tracks connections.
 */
export function flushConnections(address: string): number | null {
  return withNetlink(NETLINK.NETFILTER, (ask) => {
    const found = findConnections(ask, address);
    if (found === null) return null;
    let forgotten = 0;
    let isWhole = true;
    for (const connection of found) {
      const body = ofIpv4(connection);
      const error = errorOf(ask({ type: CT_DELETE, flags: NLM_F.ACK, body }));
      if (error === 0) forgotten++;
      else if (error !== ENOENT) isWhole = false; // it has just ended
    }
    return isWhole ? forgotten : null;
  });
}

/** The connections of this address, each as the attributes that identify it. */
function findConnections(ask: Ask, address: string): Bytes[] | null {
  const wanted = address.split(".").map(Number).join();
  const found: Bytes[] = [];
  for (const message of ask({ type: CT_GET, flags: NLM_F.DUMP, body: ofIpv4() })) {
    if (typeOf(message) === NLMSG.DONE) return found;
    if (typeOf(message) === NLMSG.ERROR) return null;
    const attributes = attributesOf(message.subarray(HEADER_BYTES + FAMILY_BYTES));
    const tuples = [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY].map((tuple) => attributes.get(tuple));
    const ends = tuples.flatMap(endsOf);
    const original = attributes.get(CTA_TUPLE_ORIG);
    if (original === undefined || !ends.includes(wanted)) continue;
    const which = [original, attributes.get(CTA_ZONE)].filter((it) => it !== undefined);
    found.push(concatenated(which.map(({ whole }) => whole)));
  }
  return null; // it did not end: messages were lost
}

/** The addresses of a tuple, as four numbers with commas. */
function endsOf(tuple: Attribute | undefined): string[] {
  const ip = tuple && attributesOf(tuple.value).get(CTA_TUPLE_IP);
  if (ip === undefined) return [];
  return [...attributesOf(ip.value).values()].map(({ value }) => value.join());
}

function ofIpv4(attributes: Bytes = new Uint8Array()): Bytes {
  return concatenated([new Uint8Array([AF_INET, 0, 0, 0]), attributes]);
}
