// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * The kernel's table of tracked connections, by netlink(7) and the messages of
 * linux/netfilter/nfnetlink_conntrack.h. The C library has no function for it.
 */
const symbols = {
  socket: {
    parameters: [
      "i32", // int domain
      "i32", // int type
      "i32", // int protocol
    ],
    result: "i32", // -1 on error
  },
  send: {
    parameters: [
      "i32", // int fd
      "buffer", // const void *buf
      "usize", // size_t len
      "i32", // int flags
    ],
    result: "isize", // -1 on error
  },
  recv: {
    parameters: [
      "i32", // int fd
      "buffer", // void *buf
      "usize", // size_t len
      "i32", // int flags
    ],
    result: "isize", // -1 on error
  },
  close: {
    parameters: [
      "i32", // int fd
    ],
    result: "i32", // -1 on error
  },
} as const satisfies Deno.ForeignLibraryInterface;

const AF_INET = 2;
const AF_NETLINK = 16;
const SOCK_RAW_CLOEXEC = 0o2000003;
const NETLINK_NETFILTER = 12;
const MSG_DONTWAIT = 0x40; // what the kernel has to say is there when it has taken the request
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLM_F_DUMP = 0x300;
const CT_GET = 0x101; // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
const CT_DELETE = 0x102;
const CTA_TUPLE_ORIG = 1;
const CTA_TUPLE_REPLY = 2;
const CTA_ZONE = 18;
const CTA_TUPLE_IP = 1;
const HEADER_BYTES = 16; // struct nlmsghdr
const BODY_AT = 20; // after struct nfgenmsg
const RECEIVE_BYTES = 64 * 1024;
const ENOENT = 2;

type Bytes = Uint8Array<ArrayBuffer>;
type Libc = Deno.DynamicLibrary<typeof symbols>["symbols"];

/** The way to the table. */
interface Table {
  readonly libc: Libc;
  readonly socket: number;
}

/**
 * Has the kernel forget the IPv4 connections that have this address at an end, in either direction.
 * Gives how many, or null if it has not forgotten all: it takes root, and a kernel that tracks
 * connections.
 */
export function forgetConnections(address: string): number | null {
  const library = Deno.dlopen("libc.so.6", symbols);
  const libc = library.symbols;
  const socket = libc.socket(AF_NETLINK, SOCK_RAW_CLOEXEC, NETLINK_NETFILTER);
  try {
    if (socket < 0) return null;
    const found = findConnections({ libc, socket }, address);
    if (found === null) return null;
    let forgotten = 0;
    let isWhole = true;
    for (const connection of found) {
      const error = firstError(ask({ libc, socket }, CT_DELETE, NLM_F_ACK, connection));
      if (error === 0) forgotten++;
      else if (error !== ENOENT) isWhole = false; // which is one that ended just now
    }
    return isWhole ? forgotten : null;
  } finally {
    if (socket >= 0) libc.close(socket);
    library.close();
  }
}

/** The connections of this address, each as the attributes that say which it is. */
function findConnections(table: Table, address: string): Bytes[] | null {
  const wanted = address.split(".").map(Number).join();
  const found: Bytes[] = [];
  for (const message of ask(table, CT_GET, NLM_F_DUMP, new Uint8Array())) {
    if (typeOf(message) === NLMSG_DONE) return found;
    if (typeOf(message) === NLMSG_ERROR) return null;
    const attributes = attributesOf(message.subarray(BODY_AT));
    const ends = [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY].flatMap((tuple) =>
      endsOf(attributes.get(tuple))
    );
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

/** Sends a request and gives each message that comes, until the last. */
function* ask({ libc, socket }: Table, type: number, flags: number, body: Bytes): Generator<Bytes> {
  const request = new Uint8Array(BODY_AT + body.length);
  const view = new DataView(request.buffer);
  view.setUint32(0, request.length, true);
  view.setUint16(4, type, true);
  view.setUint16(6, NLM_F_REQUEST | flags, true);
  request[HEADER_BYTES] = AF_INET;
  request.set(body, BODY_AT);
  if (Number(libc.send(socket, request, BigInt(request.length), 0)) < 0) return;
  for (;;) {
    const buffer = new Uint8Array(RECEIVE_BYTES);
    const length = Number(libc.recv(socket, buffer, BigInt(buffer.length), MSG_DONTWAIT));
    if (length <= 0) return;
    for (const message of messagesIn(buffer.subarray(0, length))) {
      yield message;
      if (typeOf(message) === NLMSG_ERROR || typeOf(message) === NLMSG_DONE) return;
    }
  }
}

function* messagesIn(bytes: Bytes): Generator<Bytes> {
  for (let at = 0; at + HEADER_BYTES <= bytes.length;) {
    const length = viewOf(bytes).getUint32(at, true);
    if (length < HEADER_BYTES) return;
    yield bytes.subarray(at, at + length);
    at += aligned(length);
  }
}

function typeOf(message: Bytes): number {
  return viewOf(message).getUint16(4, true);
}

/** The error number of what the kernel answers to a change; 0 is none, -1 no answer. */
function firstError(messages: Iterable<Bytes>): number {
  for (const message of messages) return -viewOf(message).getInt32(HEADER_BYTES, true);
  return -1;
}

/** An attribute: what it holds, and that with its head, as it goes into another message. */
interface Attribute {
  readonly value: Bytes;
  readonly whole: Bytes;
}

const HEAD_BYTES = 4; // struct nlattr
const TYPE_MASK = 0x3fff; // without the flags for nesting and byte order

function attributesOf(bytes: Bytes): Map<number, Attribute> {
  const found = new Map<number, Attribute>();
  for (let at = 0; at + HEAD_BYTES <= bytes.length;) {
    const length = viewOf(bytes).getUint16(at, true);
    if (length < HEAD_BYTES) break;
    found.set(viewOf(bytes).getUint16(at + 2, true) & TYPE_MASK, {
      value: bytes.subarray(at + HEAD_BYTES, at + length),
      whole: bytes.slice(at, at + aligned(length)),
    });
    at += aligned(length);
  }
  return found;
}

function viewOf(bytes: Bytes): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function aligned(length: number): number {
  return (length + 3) & ~3;
}

function concatenated(parts: readonly Bytes[]): Bytes {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
