// SPDX-License-Identifier: GPL-2.0-or-later
import type { Readable } from "node:stream";
// @ts-types="@types/ssh2"
import type { Client, ClientChannel } from "ssh2";

/** Takes a part of a command's output. The next part waits until this one is taken. */
export type Sink = (bytes: Uint8Array) => Promise<void>;

export interface Outputs {
  readonly stdout: Sink;
  readonly stderr: Sink;
}

/** How a command ended: with a status, by a signal, or with neither if the guest was lost. */
export interface CommandEnd {
  readonly status: number | null;
  readonly signal: string | null;
}

export interface CommandStreams {
  readonly input: Uint8Array;
  readonly stdout: Filter;
  readonly stderr: Filter;
}

/** A sink that resolves to `true` once it has all that it wants. The stream may go on. */
export type Filter = (bytes: Uint8Array) => Promise<boolean | void>;

/** Gives the filter what the stream has, until that ends or the filter has all. */
export async function drain(stream: Readable, filter: Filter): Promise<void> {
  // Destroyed, the stream would close the channel before the exit status has come.
  for await (const bytes of stream.iterator({ destroyOnReturn: false })) {
    if (await filter(bytes) === true) break;
  }
  stream.resume(); // unread bytes would hold the channel open
}

/** Resolves when the command of this channel has ended, or its connection. */
export function endOf(channel: ClientChannel, client: Client): Promise<CommandEnd> {
  const { promise, resolve } = Promise.withResolvers<CommandEnd>();
  channel.on("exit", (status: number | null, signal?: string) => {
    resolve({ status, signal: signal ?? null });
  });
  const lost = (): void => resolve({ status: null, signal: null });
  channel.on("close", lost);
  client.once("close", lost);
  return promise.finally(() => client.off("close", lost));
}
