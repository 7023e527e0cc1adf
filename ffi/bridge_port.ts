// SPDX-License-Identifier: GPL-2.0-or-later
import { libc } from "./libc.ts";
import { concatenated, cString } from "./memory.ts";
import { attribute, errorOf, NETLINK, NLA_F_NESTED, NLM_F, withNetlink } from "./netlink.ts";

const load = libc("if_nametoindex");

const RTM_SETLINK = 19; // linux/rtnetlink.h
const AF_BRIDGE = 7; // linux/socket.h
const IFLA_PROTINFO = 12; // linux/if_link.h
const IFLA_BRPORT_GROUP_FWD_MASK = 31;

/**
 * Sets which link-local groups (01:80:c2:00:00:0X) the bridge forwards from this port, a bit for each.
 * Gives whether it did, which takes CAP_NET_ADMIN. sysfs has the same setting in a file for root alone.
 */
export function setGroupForwardMask(device: string, mask: number): boolean {
  const index = load().if_nametoindex(cString(device));
  if (index === 0) return false;
  const value = new Uint8Array(new Uint16Array([mask]).buffer);
  const port = attribute(IFLA_BRPORT_GROUP_FWD_MASK, value);
  const body = concatenated([interfaceInfo(index), attribute(IFLA_PROTINFO | NLA_F_NESTED, port)]);
  const request = { type: RTM_SETLINK, flags: NLM_F.ACK, body };
  return withNetlink(NETLINK.ROUTE, (ask) => errorOf(ask(request)) === 0) ?? false;
}

function interfaceInfo(index: number): Uint8Array<ArrayBuffer> {
  const info = new Uint8Array(16);
  info[0] = AF_BRIDGE; // ifi_family
  new DataView(info.buffer).setInt32(4, index, true); // ifi_index
  return info;
}
