// SPDX-License-Identifier: GPL-2.0-or-later
import { libc, O_RDONLY_CLOEXEC } from "./libc.ts";
import { cString } from "./memory.ts";

/** The functions for pipes, see pipe(7), bound at the first call. */
export const loadPipe = libc("open", "close", "write", "pipe2", "fcntl", "poll", "splice");

// fcntl.h and poll.h of Linux.
const O_NONBLOCK_CLOEXEC = 0o2004000;
const F_SETPIPE_SZ = 1031;
const POLLOUT = 4;
const SPLICE_F_NONBLOCK = 2;

/** The largest pipe that any user may have (pipe-max-size in proc(5)). */
const PIPE_BYTES = 1024 * 1024;
/** How often to check whether the pipe is still read. */
const POLL_MS = 100;

/** How long to wait for a disk that does not answer. */
const LAST_MS = 2000;

/** A file to read: first these bytes, then its own from the offset on. */
export interface Spliced {
  readonly before: Uint8Array<ArrayBuffer>;
  readonly file: string;
  readonly offset: number;
}

/**
 * Lets `use` read a file with other bytes before it, once, by the path of a pipe: nothing is copied.
 * Root and this user's processes can open the path until `use` ends. Null, without calling `use`, if
 * the file cannot be opened.
 */
export async function withSpliced<T>(
  { before, file, offset }: Spliced,
  use: (path: string) => Promise<T>,
): Promise<T | null> {
  const { open, close, pipe2, fcntl } = loadPipe();
  const source = open(cString(file), O_RDONLY_CLOEXEC);
  if (source < 0) return null;
  const ends = new Int32Array(2);
  if (pipe2(ends, O_NONBLOCK_CLOEXEC) < 0) {
    close(source);
    return null;
  }
  const [output = -1, input = -1] = ends;
  fcntl(input, F_SETPIPE_SZ, PIPE_BYTES); // a smaller pipe is only slower

  let isOver = false;
  const hasRoom = async (): Promise<boolean> => {
    while (!isOver) if (await isWritable(input)) return true;
    return false;
  };
  const feed = async (): Promise<void> => {
    await writeAll(before, input, hasRoom) &&
      await spliceAll({ source, offset }, input, hasRoom);
    close(source);
    close(input); // the reader comes to the end
  };
  const fed = feed();
  try {
    return await use(`/proc/${Deno.pid}/fd/${output}`);
  } finally {
    isOver = true;
    close(output);
    await orLater(fed);
  }
}

async function orLater(done: Promise<void>): Promise<void> {
  const { promise: late, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, LAST_MS);
  await Promise.race([done, late]);
  clearTimeout(timer);
}

/** Waits a little for room in the pipe. */
async function isWritable(input: number): Promise<boolean> {
  const polled = new Int32Array([input, POLLOUT]); // struct pollfd: int fd, short events, revents
  return await loadPipe().poll(polled, 1n, POLL_MS) === 1;
}

type HasRoom = () => Promise<boolean>;

async function writeAll(
  bytes: Uint8Array<ArrayBuffer>,
  input: number,
  hasRoom: HasRoom,
): Promise<boolean> {
  const { write } = loadPipe();
  for (let at = 0; at < bytes.length;) {
    if (!await hasRoom()) return false;
    const rest = bytes.subarray(at);
    const written = Number(write(input, rest, BigInt(rest.length)));
    if (written < 0) return false;
    at += written;
  }
  return true;
}

/** Moves the file into the pipe, to its end or until that fails. */
async function spliceAll(
  { source, offset }: { readonly source: number; readonly offset: number },
  input: number,
  hasRoom: HasRoom,
): Promise<void> {
  const { splice } = loadPipe();
  const position = new BigInt64Array([BigInt(offset)]);
  const most = BigInt(PIPE_BYTES);
  while (await hasRoom()) {
    const moved = await splice(source, position, input, null, most, SPLICE_F_NONBLOCK);
    if (Number(moved) <= 0) return;
  }
}
