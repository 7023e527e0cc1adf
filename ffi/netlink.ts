// SPDX-License-Identifier: GPL-2.0-or-later
import { libc } from "./libc.ts";

/** The functions for netlink(7), bound at the first call. */
export const loadNetlink = libc("socket", "send", "recv", "close");

const AF_NETLINK = 16;
const SOCK_RAW_CLOEXEC = 0o2000003;
const MSG_DONTWAIT = 0x40; // the kernel's answer is there once it has taken the request
const NLM_F_REQUEST = 1;
const RECEIVE_BYTES = 64 * 1024;

/** From linux/netlink.h: the protocols, the types of the kernel's own messages, and flags of requests. */
export const NETLINK = { ROUTE: 0, NETFILTER: 12 } as const;
export const NLMSG = { ERROR: 2, DONE: 3 } as const;
export const NLM_F = { ACK: 4, DUMP: 0x300 } as const;

/** The bytes of struct nlmsghdr, which each message begins with. */
export const HEADER_BYTES = 16;

export type Bytes = Uint8Array<ArrayBuffer>;

/** A message to the kernel: its body is the family's own header, and attributes. */
export interface NetlinkRequest {
  readonly type: number;
  /** Of {@linkcode NLM_F}. */
  readonly flags: number;
  readonly body: Bytes;
}

/** Sends a request and gives each message that comes, until the last. */
export type Ask = (request: NetlinkRequest) => Iterable<Bytes>;

/** Calls the function with a netlink socket of this protocol. Gives null if the kernel has none. */
export function withNetlink<T>(protocol: number, body: (ask: Ask) => T): T | null {
  const { socket: open, close } = loadNetlink();
  const socket = open(AF_NETLINK, SOCK_RAW_CLOEXEC, protocol);
  if (socket < 0) return null;
  try {
    return body((request) => ask(socket, request));
  } finally {
    close(socket);
  }
}

function* ask(socket: number, { type, flags, body }: NetlinkRequest): Generator<Bytes> {
  const { send, recv } = loadNetlink();
  const request = new Uint8Array(HEADER_BYTES + body.length);
  const view = viewOf(request);
  view.setUint32(0, request.length, true);
  view.setUint16(4, type, true);
  view.setUint16(6, NLM_F_REQUEST | flags, true);
  request.set(body, HEADER_BYTES);
  if (Number(send(socket, request, BigInt(request.length), 0)) < 0) return;
  for (;;) {
    const buffer = new Uint8Array(RECEIVE_BYTES);
    const length = Number(recv(socket, buffer, BigInt(buffer.length), MSG_DONTWAIT));
    if (length <= 0) return;
    for (const message of messagesIn(buffer.subarray(0, length))) {
      yield message;
      if (typeOf(message) === NLMSG.ERROR || typeOf(message) === NLMSG.DONE) return;
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

export function typeOf(message: Bytes): number {
  return viewOf(message).getUint16(4, true);
}

/**
 * The error number in the kernel's answer to a change ({@linkcode NLM_F}): 0 for none, -1 without an
 * answer.
 */
export function errorOf(messages: Iterable<Bytes>): number {
  for (const message of messages) return -viewOf(message).getInt32(HEADER_BYTES, true);
  return -1;
}

/** An attribute: its content, and the content with its head, ready for another message. */
export interface Attribute {
  readonly value: Bytes;
  readonly whole: Bytes;
}

const HEAD_BYTES = 4; // struct nlattr
/** Marks the type of an attribute that holds attributes. */
export const NLA_F_NESTED = 0x8000;
const TYPE_MASK = 0x3fff; // without the flags for nesting and byte order

/** The attributes in these bytes, by type. */
export function attributesOf(bytes: Bytes): Map<number, Attribute> {
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

export function attribute(type: number, value: Bytes): Bytes {
  const whole = new Uint8Array(aligned(HEAD_BYTES + value.length));
  viewOf(whole).setUint16(0, HEAD_BYTES + value.length, true);
  viewOf(whole).setUint16(2, type, true);
  whole.set(value, HEAD_BYTES);
  return whole;
}

function viewOf(bytes: Bytes): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function aligned(length: number): number {
  return (length + 3) & ~3;
}
