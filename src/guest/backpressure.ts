// SPDX-License-Identifier: GPL-2.0-or-later
import type { Duplex, Readable } from "node:stream";
// @ts-types="@types/ssh2"
import type { Client } from "ssh2";

/** Twice the unread bytes of a stream that a server can cause if it keeps to its window. */
const MOST_UNREAD_BYTES = 8 * 1024 * 1024;
/** For replies, which a server could ask for and never read. */
const MOST_UNSENT_BYTES = 64 * 1024;
/**
 * The overhead of each part of a stream, which may have a single byte: V8's objects, and garbage.
 */
const PART_BYTES = 4096;
const LOOK_MS = 10;

/** Private parts of ssh2 1.17. tests/guest/flood_test.ts fails if they change. */
interface Insides {
  /** Its channels by number. A channel that is not open yet is a function. */
  readonly _chanMgr: { readonly _channels: Readonly<Record<number, ChannelInsides>> };
  /** Resets the count of unanswered keepalives. */
  readonly _resetKA: () => void;
  readonly _protocol: ProtocolInsides;
}

interface ProtocolInsides {
  /** The handler of each kind of message. */
  readonly _handlers: {
    GLOBAL_REQUEST: (protocol: ProtocolInsides, name: string, wantsReply: boolean) => void;
  };
  readonly requestFailure: () => void;
}

interface ReadableInsides extends Readable {
  readonly _readableState: { readonly buffer: ArrayLike<unknown> };
}

interface ChannelInsides extends ReadableInsides {
  readonly stderr: ReadableInsides;
}

/**
 * Stops reading a connection while the client holds too many bytes that nobody has read, or too many
 * replies that it cannot send: ssh2 does not enforce its window. A server that does not read either is
 * then lost by its keepalives.
 */
export function limitBuffering(client: Client, socket: Duplex): void {
  const insides = client as unknown as Insides;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const look = (): void => {
    timer = undefined;
    const isUnread = unreadBytes(insides) > MOST_UNREAD_BYTES;
    if (isUnread || socket.writableLength > MOST_UNSENT_BYTES) {
      if (isUnread) insides._resetKA(); // meanwhile the answers are not read, however slow the log is
      socket.pause();
      timer = setTimeout(look, LOOK_MS);
    } else if (socket.isPaused()) socket.resume();
  };
  socket.on("data", () => timer === undefined && look());
  socket.on("close", () => clearTimeout(timer));
  // ssh2 would keep all host keys that a server announces until it proves them. They are not used here.
  insides._protocol._handlers.GLOBAL_REQUEST = (protocol, _name, wantsReply) => {
    if (wantsReply) protocol.requestFailure();
  };
}

/** The bytes for the client's channels that nobody has read yet. */
function unreadBytes({ _chanMgr }: Insides): number {
  return Object.values(_chanMgr._channels)
    .filter((channel) => channel.stderr !== undefined)
    .flatMap((channel) => [channel, channel.stderr])
    .map((stream) => stream.readableLength + stream._readableState.buffer.length * PART_BYTES)
    .reduce((sum, bytes) => sum + bytes, 0);
}
