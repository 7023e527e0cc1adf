// SPDX-License-Identifier: GPL-2.0-or-later
import { Buffer } from "node:buffer";
import type { Socket } from "node:net";
// @ts-types="@types/ssh2"
import type { Connection, Session } from "ssh2";
import { sleep } from "../../src/wait.ts";

/** How a hostile SSH server has its client hold memory, and how often until that is seen. */
export const FLOODS = {
  /** More data than the client asked for, which its log does not take. */
  data: 2500,
  /** The same, a byte a packet, of which most is what the client needs to hold it. */
  crumbs: 200_000,
  /** Data for a command that the server never said it runs, so that it is not read. */
  early: 2500,
  /** Requests that want a reply, from a server that does not read. */
  requests: 60_000,
  /** Host keys that the client asks to be proved, from a server that never proves any. */
  hostkeys: 400,
} as const;
export type FloodKind = keyof typeof FLOODS;

export interface Flood {
  readonly kind: FloodKind;
  /** How many; by default as many as are seen. */
  readonly count?: number;
  /** How long; by default until all are taken, or the client takes none any more. */
  readonly seconds?: number;
  /** Whether the command ends well after it. */
  readonly ends?: boolean;
}

export const DATA_BYTES = 32_000;
/** When no more is expected to be taken, also of a busy process. */
const STALL_MS = 2000;

/** The names that ssh2 has for what its own server would never do. */
interface ConnectionInsides {
  readonly _sock: Socket;
  readonly _protocol: {
    readonly channelData: (channel: number, data: Uint8Array) => void;
    readonly exitStatus: (channel: number, status: number) => void;
    readonly channelClose: (channel: number) => void;
    readonly ping: () => void;
    readonly _packetRW: {
      readonly write: {
        readonly allocStart: number;
        readonly alloc: (bytes: number) => Uint8Array;
        readonly finalize: (packet: Uint8Array) => Uint8Array;
      };
    };
    readonly _cipher: { readonly encrypt: (packet: Uint8Array) => void };
  };
}

interface SessionInsides {
  readonly _chanInfo: { readonly outgoing: { readonly id: number } };
}

const AT_ONCE_BYTES = 256 * 1024;

/** Floods the client of a session as fast as it reads. */
export async function floodClient(
  { kind, seconds, count = seconds === undefined ? FLOODS[kind] : Infinity, ends = false }: Flood,
  connection: Connection,
  session: Session,
): Promise<void> {
  const { _sock: socket, _protocol: protocol } = insidesOf(connection);
  const { _chanInfo: { outgoing: { id } } } = session as unknown as SessionInsides;
  const data = new Uint8Array(kind === "crumbs" ? 1 : DATA_BYTES).fill("x".charCodeAt(0));
  const hostKeys = hostKeysRequest();
  if (kind === "requests") socket.pause();
  if (kind === "hostkeys") socket.removeAllListeners("data").on("data", () => {});
  const isOver = ends
    ? () => false
    : seconds === undefined
    ? stalls(socket)
    : afterMs(seconds * 1000);
  for (let left = count; (left > 0 || socket.writableLength > 0) && !isOver();) {
    if (socket.destroyed) return;
    socket.cork(); // a system call for each packet would take most of the time
    for (let i = 0; i < 1000 && left > 0 && socket.writableLength < AT_ONCE_BYTES; i++, left--) {
      if (kind === "requests") protocol.ping();
      else if (kind === "hostkeys") sendPayload(connection, hostKeys);
      else protocol.channelData(id, data);
    }
    socket.uncork();
    await sleep(1);
  }
  if (!ends) return;
  protocol.exitStatus(id, 0);
  protocol.channelClose(id);
}

function afterMs(milliseconds: number): () => boolean {
  const end = performance.now() + milliseconds;
  return () => performance.now() > end;
}

/** Whether nothing has been taken of what is written for some time. */
function stalls(socket: Socket): () => boolean {
  let taken = 0;
  let isOver = afterMs(STALL_MS);
  return () => {
    const now = socket.bytesWritten - socket.writableLength;
    if (now !== taken) isOver = afterMs(STALL_MS);
    taken = now;
    return isOver();
  };
}

/** hostkeys-00@openssh.com, of OpenSSH's PROTOCOL: it wants no reply. */
function hostKeysRequest(): Uint8Array {
  const text = (bytes: string | Uint8Array): Uint8Array => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    return Buffer.concat([length, Buffer.from(bytes)]);
  };
  const key = Buffer.concat([text("ssh-ed25519"), text(new Uint8Array(32).fill(7))]);
  const head = [Buffer.from([80]), text("hostkeys-00@openssh.com"), Buffer.from([0])];
  return Buffer.concat([...head, ...Array(400).fill(text(key))]);
}

/** Sends what ssh2 itself would not: it checks its own words. */
export function sendPayload(connection: Connection, payload: Uint8Array): void {
  const { _protocol: { _cipher, _packetRW: { write } } } = insidesOf(connection);
  const start = write.allocStart;
  const packet = write.alloc(payload.length);
  packet.set(payload, start);
  _cipher.encrypt(write.finalize(packet));
}

function insidesOf(connection: Connection): ConnectionInsides {
  return connection as unknown as ConnectionInsides;
}
