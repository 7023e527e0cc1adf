// SPDX-License-Identifier: GPL-2.0-or-later
import { libc } from "./libc.ts";

/**
 * The functions for a virtual CPU (https://docs.kernel.org/virt/kvm/api.html), bound at the first call.
 */
export const loadKvm = libc(
  "open",
  "close",
  "ioctl",
  "ioctlStruct",
  "ioctlWait",
  "mmap",
  "mprotect",
  "munmap",
  "__errno_location",
);

export type Libc = ReturnType<typeof loadKvm>;

/** From sys/mman.h of Linux. */
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

/** The offsets of the fields of struct kvm_run, from linux/kvm.h. */
export const KVM_RUN_OFFSET = { exitReason: 8, ioPort: 34, ioDataOffset: 40 } as const;

/** The bytes of the head of struct kvm_cpuid2 and of one entry, from linux/kvm.h. */
export const KVM_CPUID2_SIZE = { head: 8, entry: 40 } as const;
