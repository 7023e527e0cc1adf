// SPDX-License-Identifier: GPL-2.0-or-later
import { blocking, fn } from "./declare.ts";

/**
 * The functions of the C library that we call, as its manual declares them. No compiler checks these
 * types. A result of -1 is an error where nothing else is said.
 *
 * `open`, `fcntl` and `ioctl` are variadic in C. Declared with fixed parameters they work all the
 * same: on x86-64 Linux a variadic integer or pointer travels in the same register as a fixed one.
 */
const symbols = {
  // Files
  open: fn("i32", /* const char *path */ "buffer", /* int flags */ "i32"),
  close: fn("i32", /* int fd */ "i32"),
  read: fn("isize", /* int fd */ "i32", /* void *buf */ "buffer", /* size_t count */ "usize"),
  write: fn(
    "isize",
    /* int fd */ "i32",
    /* const void *buf */ "buffer",
    /* size_t count */ "usize",
  ),
  readlink: fn(
    "isize",
    /* const char *path */ "buffer",
    /* char *buf */ "buffer",
    /* size_t bufsiz */ "usize",
  ),
  statvfs: fn("i32", /* const char *path */ "buffer", /* struct statvfs *buf */ "buffer"),
  umask: fn("u32", /* mode_t mask */ "u32"), // the mask before

  // Pipes
  pipe2: fn("i32", /* int pipefd[2] */ "buffer", /* int flags */ "i32"),
  fcntl: fn("i32", /* int fd */ "i32", /* int cmd */ "i32", /* int arg */ "i32"),
  /** How many are ready. */
  poll: blocking(
    "i32",
    /* struct pollfd *fds */ "buffer",
    /* nfds_t nfds */ "u64",
    /* int timeout, in milliseconds */ "i32",
  ),
  /** How many bytes, 0 at the end of the file. It waits for the disk. */
  splice: blocking(
    "isize",
    /* int fd_in */ "i32",
    /* off64_t *off_in */ "buffer",
    /* int fd_out */ "i32",
    /* off64_t *off_out */ "buffer",
    /* size_t len */ "usize",
    /* unsigned int flags */ "u32",
  ),

  // Sockets and network devices
  socket: fn("i32", /* int domain */ "i32", /* int type */ "i32", /* int protocol */ "i32"),
  send: fn(
    "isize",
    /* int fd */ "i32",
    /* const void *buf */ "buffer",
    /* size_t len */ "usize",
    /* int flags */ "i32",
  ),
  recv: fn(
    "isize",
    /* int fd */ "i32",
    /* void *buf */ "buffer",
    /* size_t len */ "usize",
    /* int flags */ "i32",
  ),
  getsockopt: fn(
    "i32",
    /* int sockfd */ "i32",
    /* int level */ "i32",
    /* int optname */ "i32",
    /* void *optval */ "buffer",
    /* socklen_t *optlen */ "buffer",
  ),
  if_nametoindex: fn("u32", /* const char *ifname */ "buffer"), // 0 on error

  // Processes
  getpgid: fn("i32", /* pid_t pid */ "i32"),
  __errno_location: fn("pointer"), // int *, the calling thread's errno

  // Devices and memory
  ioctl: fn(
    "i32",
    /* int fd */ "i32",
    /* unsigned long request */ "usize",
    /* unsigned long argument */ "usize",
  ),
  /** `ioctl` with a structure. */
  ioctlStruct: {
    name: "ioctl",
    ...fn(
      "i32",
      /* int fd */ "i32",
      /* unsigned long request */ "usize",
      /* void *argument */ "buffer",
    ),
  },
  /** `ioctl` on a thread of its own, for KVM_RUN: the guest decides how long it takes. */
  ioctlWait: {
    name: "ioctl",
    ...blocking(
      "i32",
      /* int fd */ "i32",
      /* unsigned long request */ "usize",
      /* unsigned long argument */ "usize",
    ),
  },
  /** void *, MAP_FAILED on error. */
  mmap: fn(
    "usize",
    /* void *address */ "pointer",
    /* size_t length */ "usize",
    /* int protection */ "i32",
    /* int flags */ "i32",
    /* int fd */ "i32",
    /* off_t offset */ "i64",
  ),
  mprotect: fn(
    "i32",
    /* void *address */ "usize",
    /* size_t length */ "usize",
    /* int protection */ "i32",
  ),
  munmap: fn("i32", /* void *address */ "usize", /* size_t length */ "usize"),
} as const satisfies Deno.ForeignLibraryInterface;

type Symbols = typeof symbols;

/** These functions, ready to call. */
type Bound<Name extends keyof Symbols> = Deno.DynamicLibrary<Pick<Symbols, Name>>["symbols"];

/**
 * How to get these functions: they are bound at the first call. Each takes 0.2 ms to bind, so every
 * file names only those that it calls.
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

/** From fcntl.h of Linux. */
export const O_RDONLY_CLOEXEC = 0o2000000;
/** From fcntl.h of Linux. */
export const O_RDWR_CLOEXEC = 0o2000002;
