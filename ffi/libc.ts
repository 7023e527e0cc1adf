// SPDX-License-Identifier: GPL-2.0-or-later
import { blocking, fn } from "./declare.ts";

/**
 * The functions of the C library that we call, as its manual declares them. No compiler checks these
 * types. A result of -1 is an error where nothing else is said.
 *
 * `open`, `fcntl` and `ioctl` are variadic in C. Declared with fixed parameters they work all the
 * same: on x86-64 Linux a variadic integer or pointer travels in the same register as a fixed one.
 */

// The C types. A buffer is memory of JavaScript's.
const int = "i32"; // also pid_t
const uint = "u32";
const ulong = "usize";
const size_t = "usize";
const ssize_t = "isize";
const text = "buffer"; // const char *
const buffer = "buffer"; // void *, or the type in the comment beside it
const address = "usize"; // void *

const symbols = {
  // Files
  open: fn(int, /* path */ text, /* flags */ int),
  close: fn(int, /* fd */ int),
  read: fn(ssize_t, /* fd */ int, /* buf */ buffer, /* count */ size_t),
  write: fn(ssize_t, /* fd */ int, /* buf */ buffer, /* count */ size_t),
  readlink: fn(ssize_t, /* path */ text, /* buf */ buffer, /* bufsiz */ size_t),
  statvfs: fn(int, /* path */ text, /* struct statvfs *buf */ buffer),

  // Pipes
  pipe2: fn(int, /* int pipefd[2] */ buffer, /* flags */ int),
  fcntl: fn(int, /* fd */ int, /* cmd */ int, /* arg */ int),
  /** How many are ready. */
  poll: blocking(int, /* struct pollfd *fds */ buffer, /* nfds */ "u64", /* timeout in ms */ int),
  /** How many bytes, 0 at the end of the file. It waits for the disk. */
  splice: blocking(
    ssize_t,
    /* fd_in */ int,
    /* off64_t *off_in */ buffer,
    /* fd_out */ int,
    /* off64_t *off_out */ buffer,
    /* len */ size_t,
    /* flags */ uint,
  ),

  // Sockets and network devices
  socket: fn(int, /* domain */ int, /* type */ int, /* protocol */ int),
  send: fn(ssize_t, /* fd */ int, /* buf */ buffer, /* len */ size_t, /* flags */ int),
  recv: fn(ssize_t, /* fd */ int, /* buf */ buffer, /* len */ size_t, /* flags */ int),
  getsockopt: fn(
    int,
    /* sockfd */ int,
    /* level */ int,
    /* optname */ int,
    /* optval */ buffer,
    /* socklen_t *optlen */ buffer,
  ),
  if_nametoindex: fn(uint, /* ifname */ text), // 0 on error

  // Processes
  getpgid: fn(int, /* pid */ int),
  __errno_location: fn("pointer"), // int *, the calling thread's errno

  // Devices and memory
  ioctl: fn(int, /* fd */ int, /* request */ ulong, /* argument */ ulong),
  /** `ioctl` with a structure. */
  ioctlStruct: { name: "ioctl", ...fn(int, /* fd */ int, /* request */ ulong, buffer) },
  /** `ioctl` on a thread of its own, for KVM_RUN: the guest decides how long it takes. */
  ioctlWait: { name: "ioctl", ...blocking(int, /* fd */ int, /* request */ ulong, ulong) },
  /** MAP_FAILED on error. */
  mmap: fn(
    address,
    /* void *address */ "pointer",
    /* length */ size_t,
    /* protection */ int,
    /* flags */ int,
    /* fd */ int,
    /* off_t offset */ "i64",
  ),
  mprotect: fn(int, /* address */ address, /* length */ size_t, /* protection */ int),
  munmap: fn(int, /* address */ address, /* length */ size_t),
} as const satisfies Deno.ForeignLibraryInterface;

type Symbols = typeof symbols;
type Bound<Name extends keyof Symbols> = Deno.DynamicLibrary<Pick<Symbols, Name>>["symbols"];

/**
 * Gives a function that binds these functions at its first call. Binding one takes 0.2 ms, so each file
 * names only those that it calls.
 */
export function libc<Name extends keyof Symbols>(...names: readonly Name[]): () => Bound<Name> {
  let bound: Bound<Name> | undefined;
  return () => bound ??= bind(names);
}

function bind<Name extends keyof Symbols>(names: readonly Name[]): Bound<Name> {
  const entries = names.map((name) => [name, symbols[name]]);
  const wanted = Object.fromEntries(entries) as Pick<Symbols, Name>;
  return Deno.dlopen("libc.so.6", wanted).symbols;
}

export const O_RDONLY_CLOEXEC = 0o2000000; // fcntl.h of Linux
export const O_RDWR_CLOEXEC = 0o2000002;
