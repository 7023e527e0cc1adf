// SPDX-License-Identifier: GPL-2.0-or-later
import type { Duplex, Readable } from "node:stream";
// @ts-types="@types/ssh2"
import type { Client } from "ssh2";

/** Twice what a server that keeps to its window has us hold of a stream. */
const MOST_UNREAD_BYTES = 8 * 1024 * 1024;
/** Of replies, which a server could ask for and never read. */
const MOST_UNSENT_BYTES = 64 * 1024;
/** What each part of a stream counts for besides its bytes, which may be one: what V8 needs, and garbage. */
const PART_BYTES = 4096;
const LOOK_MS = 10;

/** What ssh2 1.17 keeps to itself. tests/guest/flood_test.ts fails if it is not so any more. */
interface Insides {
  /** Its channels by number. One that is not open yet is a function. */
  readonly _chanMgr: { readonly _channels: Readonly<Record<number, ChannelInsides>> };
  /** Counts anew the keepalives that are not answered. */
  readonly _resetKA: () => void;
  readonly _protocol: ProtocolInsides;
}

interface ProtocolInsides {
  /** What is done with each kind of message. */
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
 * Stops reading a connection while the client holds too much that the server sent or asked for: ssh2
 * does not enforce its window. A server that does not read either is then lost by its keepalives.
 */
export function limitBuffering(client: Client, socket: Duplex): void {
  const insides = client as unknown as Insides;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const look = (): void => {
    timer = undefined;
    const isUnread = unreadBytes(insides) > MOST_UNREAD_BYTES;
    if (isUnread || socket.writableLength > MOST_UNSENT_BYTES) {
      if (isUnread) insides._resetKA(); // the answers are not read, however long the log takes
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

/** How much the client holds that has come for its channels and was not read yet. */
function unreadBytes({ _chanMgr }: Insides): number {
  return Object.values(_chanMgr._channels)
    .filter((channel) => channel.stderr !== undefined)
    .flatMap((channel) => [channel, channel.stderr])
    .map((stream) => stream.readableLength + stream._readableState.buffer.length * PART_BYTES)
    .reduce((sum, bytes) => sum + bytes, 0);
}
