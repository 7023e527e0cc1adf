// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * The functions of the C library and the requests of /dev/kvm that a virtual CPU needs, as
 * `open(2)`, `ioctl(2)`, `mmap(2)` and https://docs.kernel.org/virt/kvm/api.html declare them.
 *
 * `open` and `ioctl` are variadic in C. Declared with fixed parameters they work all the same: on
 * x86-64 Linux a variadic integer or pointer travels in the same register as a fixed one.
 */
export const symbols = {
  open: {
    parameters: [
      "buffer", // const char *path
      "i32", // int flags
    ],
    result: "i32", // -1 on error
  },
  close: {
    parameters: [
      "i32", // int fd
    ],
    result: "i32", // -1 on error
  },
  ioctl: {
    parameters: [
      "i32", // int fd
      "usize", // unsigned long request
      "usize", // unsigned long argument
    ],
    result: "i32", // -1 on error
  },
  /** `ioctl` with a structure. */
  ioctlStruct: {
    name: "ioctl",
    parameters: [
      "i32", // int fd
      "usize", // unsigned long request
      "buffer", // void *argument
    ],
    result: "i32", // -1 on error
  },
  /** `ioctl` on a thread of its own, for KVM_RUN: the guest decides how long it takes. */
  ioctlWait: {
    name: "ioctl",
    parameters: [
      "i32", // int fd
      "usize", // unsigned long request
      "usize", // unsigned long argument
    ],
    result: "i32", // -1 on error
    nonblocking: true,
  },
  mmap: {
    parameters: [
      "pointer", // void *address
      "usize", // size_t length
      "i32", // int protection
      "i32", // int flags
      "i32", // int fd
      "i64", // off_t offset
    ],
    result: "usize", // void *, MAP_FAILED on error
  },
  mprotect: {
    parameters: [
      "usize", // void *address
      "usize", // size_t length
      "i32", // int protection
    ],
    result: "i32", // -1 on error
  },
  munmap: {
    parameters: [
      "usize", // void *address
      "usize", // size_t length
    ],
    result: "i32", // -1 on error
  },
  __errno_location: {
    parameters: [],
    result: "pointer", // int *, the calling thread's errno
  },
} as const satisfies Deno.ForeignLibraryInterface;

/** The functions of {@linkcode symbols}, ready to call. */
export type Libc = Deno.DynamicLibrary<typeof symbols>["symbols"];

/** From fcntl.h and sys/mman.h of Linux. */
export const O_RDWR = 0o2;
export const O_CLOEXEC = 0o2000000;
export const PROT_NONE = 0;
export const PROT_READ_WRITE = 3;
export const MAP_SHARED = 0x01;
export const MAP_ANONYMOUS = 0x20;
export const MAP_FAILED = 2n ** 64n - 1n;

/** From errno.h of Linux. */
export const ERRNO = { EPERM: 1, ENOENT: 2, ENXIO: 6, EACCES: 13, ENODEV: 19 } as const;

/** The requests, from linux/kvm.h. */
export const KVM = {
  GET_API_VERSION: 0xae00n,
  CREATE_VM: 0xae01n,
  GET_VCPU_MMAP_SIZE: 0xae04n,
  GET_SUPPORTED_CPUID: 0xc008ae05n, // struct kvm_cpuid2
  CREATE_VCPU: 0xae41n,
  SET_USER_MEMORY_REGION: 0x4020ae46n, // struct kvm_userspace_memory_region
  SET_TSS_ADDR: 0xae47n,
  RUN: 0xae80n,
  SET_CPUID2: 0x4008ae90n, // struct kvm_cpuid2
} as const;

/** Why KVM_RUN came back, from linux/kvm.h. */
export const KVM_EXIT = {
  IO: 2,
  SHUTDOWN: 8,
  FAIL_ENTRY: 9,
  INTR: 10,
  INTERNAL_ERROR: 17,
} as const;

/** Where struct kvm_run has its fields, from linux/kvm.h. */
export const KVM_RUN_OFFSET = { exitReason: 8, ioPort: 34, ioDataOffset: 40 } as const;

/** The bytes of the head of struct kvm_cpuid2 and of one entry, from linux/kvm.h. */
export const KVM_CPUID2_SIZE = { head: 8, entry: 40 } as const;

let library: Libc | undefined;

/** The C library, which is loaded with Deno itself: at the first call its functions are bound. */
export function loadLibc(): Libc {
  library ??= Deno.dlopen("libc.so.6", symbols).symbols;
  return library;
}
