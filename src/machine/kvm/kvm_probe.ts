// SPDX-License-Identifier: GPL-2.0-or-later
import {
  ERRNO,
  KVM,
  KVM_CPUID2_SIZE,
  KVM_EXIT,
  KVM_RUN_OFFSET,
  type Libc,
  loadKvm,
  MAP_ANONYMOUS,
  MAP_FAILED,
  MAP_SHARED,
  PROT_NONE,
  PROT_READ_WRITE,
} from "../../../ffi/kvm.ts";
import { O_RDWR_CLOEXEC } from "../../../ffi/libc.ts";
import { cString } from "../../../ffi/memory.ts";
import { GUEST_END_PORT, GUEST_STEPS, guestProgram } from "./kvm_guest.ts";

/** Whether KVM runs guests, and if not, why and what to do, in words for the operator. */
export type KvmAnswer =
  | { readonly works: true }
  | { readonly works: false; readonly reason: string }
  /** This process may not try it, which says nothing about libvirt's. */
  | { readonly works: null; readonly reason: string };

/** How to ask {@linkcode kvmRunsGuests}. */
export interface KvmProbeOptions {
  /** When the guest is stopped, 1000 ms by default. It needs a few, more on a busy host. */
  readonly timeoutMs?: number;
  /** The last 256 bytes below 4 GiB, {@linkcode guestProgram} by default. */
  readonly program?: Uint8Array;
}

const PAGE = 0x1000;
const RAM_SIZE = 0x5000;
const MEMORY_SIZE = RAM_SIZE + PAGE; // The page below 4 GiB comes after the RAM.
const LAST_PAGE = 2n ** 32n - BigInt(PAGE);
const TSS_ADDRESS = 0xfffbd000n; // Intel's KVM wants three pages of the guest's, away from ours.
const MAX_CPUID_ENTRIES = 256; // KVM's own limit.
const API_VERSION = 12; // The only one since Linux 2.6.22.

/** What KVM or the kernel refused, in words for the operator. */
class Refusal extends Error {
  readonly works: false | null = false;
}

/** The same, where another process may not be refused. */
class NoAccess extends Refusal {
  override readonly works = null;
}

/**
 * Whether KVM runs guests on this host, found by running one: a CPU with 24 KiB of memory and a
 * program of 200 bytes, all gone when the promise settles. A guest that does not end in time loses
 * its memory, which ends it. Were even that in vain, only `Deno.exit` would end the process.
 *
 * The guest gets neither interrupts nor devices: this is no proof that every guest runs. On other
 * architectures than x86-64 no guest is tried: where /dev/kvm opens, the answer is yes.
 *
 * The answer is for this process on this host. The daemon that starts the machines may have other
 * permissions, or be elsewhere.
 */
export async function kvmRunsGuests(options: KvmProbeOptions = {}): Promise<KvmAnswer> {
  if (Deno.build.os !== "linux") return { works: false, reason: "KVM exists on Linux only" };
  const libc = loadKvm();
  using resources = new DisposableStack();
  try {
    const kvm = openKvm(libc, resources);
    if (Deno.build.arch !== "x86_64") return { works: true };
    const machine = new Machine(libc, kvm, options.program ?? guestProgram(), resources);
    return await runGuest(machine, options.timeoutMs ?? 1000);
  } catch (error) {
    if (error instanceof Refusal) return { works: error.works, reason: error.message };
    throw error;
  }
}

function openKvm(libc: Libc, resources: DisposableStack): number {
  const errno = errnoOf(libc);
  const kvm = libc.open(cString("/dev/kvm"), O_RDWR_CLOEXEC);
  if (kvm >= 0) {
    resources.defer(() => libc.close(kvm));
    return kvm;
  }
  switch (errno.getInt32()) {
    case ERRNO.ENOENT:
    case ERRNO.ENODEV:
    case ERRNO.ENXIO:
      throw new NoAccess(
        "/dev/kvm does not exist: switch virtualisation on in the BIOS, " +
          "then load the module: modprobe kvm_intel, or kvm_amd",
      );
    case ERRNO.EACCES:
    case ERRNO.EPERM:
      throw new NoAccess(
        "no permission on /dev/kvm: add this user to the group that owns it, " +
          "as a rule: usermod --append --groups kvm USER",
      );
    default:
      throw new Refusal(`/dev/kvm does not open (errno ${errno.getInt32()})`);
  }
}

/** A virtual machine with one CPU and with the program in its memory, until `resources` go. */
class Machine {
  readonly #libc: Libc;
  readonly #cpu: number;
  readonly #memory: bigint;
  /** The CPU's struct kvm_run. */
  readonly #state: DataView;
  #running = false;

  constructor(libc: Libc, kvm: number, program: Uint8Array, resources: DisposableStack) {
    this.#libc = libc;
    const version = request(libc, kvm, "GET_API_VERSION");
    if (version !== API_VERSION) throw new Refusal(`KVM has the unknown API version ${version}`);

    this.#memory = map(libc, MEMORY_SIZE, MAP_SHARED | MAP_ANONYMOUS, -1);
    // A CPU that still runs would write to whatever came to stand here.
    resources.defer(() => this.#running || libc.munmap(this.#memory, BigInt(MEMORY_SIZE)));
    bytesAt(this.#memory, MEMORY_SIZE).set(program, MEMORY_SIZE - program.length);

    const vm = request(libc, kvm, "CREATE_VM");
    resources.defer(() => libc.close(vm));
    request(libc, vm, "SET_TSS_ADDR", TSS_ADDRESS);
    // struct kvm_userspace_memory_region: slot and flags, the guest's address, size, our address.
    const ram = BigUint64Array.of(0n, 0n, BigInt(RAM_SIZE), this.#memory);
    const rom = BigUint64Array.of(1n, LAST_PAGE, BigInt(PAGE), this.#memory + BigInt(RAM_SIZE));
    request(libc, vm, "SET_USER_MEMORY_REGION", ram);
    request(libc, vm, "SET_USER_MEMORY_REGION", rom);

    this.#cpu = request(libc, vm, "CREATE_VCPU");
    resources.defer(() => libc.close(this.#cpu));
    const cpuid = new Uint8Array(KVM_CPUID2_SIZE.head + MAX_CPUID_ENTRIES * KVM_CPUID2_SIZE.entry);
    new Uint32Array(cpuid.buffer)[0] = MAX_CPUID_ENTRIES;
    request(libc, kvm, "GET_SUPPORTED_CPUID", cpuid);
    request(libc, this.#cpu, "SET_CPUID2", cpuid); // Without it the CPU has no 64-bit mode.

    const stateSize = request(libc, kvm, "GET_VCPU_MMAP_SIZE");
    const state = map(libc, stateSize, MAP_SHARED, this.#cpu);
    resources.defer(() => libc.munmap(state, BigInt(stateSize)));
    this.#state = new DataView(bytesAt(state, stateSize).buffer);
  }

  /** Lets the CPU run until it needs us: false if KVM_RUN failed. */
  async run(): Promise<boolean> {
    this.#running = true;
    const result = await this.#libc.ioctlWait(this.#cpu, KVM.RUN, 0n);
    this.#running = false;
    return result >= 0;
  }

  /** Why the CPU stopped, of KVM_EXIT. */
  get exitReason(): number {
    return this.#state.getUint32(KVM_RUN_OFFSET.exitReason, true);
  }

  /** What the CPU wrote to which port, after KVM_EXIT.IO. */
  get output(): { port: number; byte: number } {
    const port = this.#state.getUint16(KVM_RUN_OFFSET.ioPort, true);
    const data = this.#state.getBigUint64(KVM_RUN_OFFSET.ioDataOffset, true);
    return { port, byte: this.#state.getUint8(Number(data)) };
  }

  /**
   * Ends a run. KVM_RUN has no timeout, and a signal would have to meet the right thread of
   * Deno's; but a CPU without memory cannot fetch an instruction, and KVM_RUN fails.
   */
  takeMemoryAway(): void {
    this.#libc.mprotect(this.#memory, BigInt(MEMORY_SIZE), PROT_NONE);
  }
}

/** Runs the guest until it has come through, cannot go on, or its time is over. */
async function runGuest(machine: Machine, timeoutMs: number): Promise<KvmAnswer> {
  const { promise: lost, resolve: lose } = Promise.withResolvers<"lost">();
  let isOver = false;
  let timer = setTimeout(() => {
    isOver = true;
    machine.takeMemoryAway();
    timer = setTimeout(() => lose("lost"), timeoutMs);
  }, timeoutMs);
  try {
    for (let step = 0;;) {
      const result = await Promise.race([machine.run(), lost]);
      if (result === "lost") return failure(step, "and KVM_RUN never returns");
      const { exitReason } = machine;
      if (isOver && (!result || exitReason !== KVM_EXIT.IO)) {
        return failure(step, `not after ${timeoutMs} ms`);
      }
      if (exitReason === KVM_EXIT.INTR) continue; // A signal came to that thread.
      if (!result) return failure(step, "KVM_RUN failed");
      if (exitReason !== KVM_EXIT.IO) return failure(step, exitWords(exitReason));
      const { port, byte } = machine.output;
      if (port === GUEST_END_PORT) return { works: true };
      step = byte;
    }
  } finally {
    clearTimeout(timer);
  }
}

function failure(step: number, detail: string): KvmAnswer {
  const reason = `KVM starts but a guest's ${GUEST_STEPS[step]} (${detail}): ` +
    "if this host is a VM itself, it needs nested virtualisation";
  return { works: false, reason };
}

function exitWords(exitReason: number): string {
  switch (exitReason) {
    case KVM_EXIT.INTERNAL_ERROR:
      return "KVM emulates the CPU, and cannot go on";
    case KVM_EXIT.FAIL_ENTRY:
      return "the CPU refuses to enter the guest";
    case KVM_EXIT.SHUTDOWN:
      return "triple fault";
    default:
      return `exit reason ${exitReason} of KVM_RUN`;
  }
}

/** One of KVM's requests, with a number or a structure. Throws {@linkcode Refusal}. */
function request(
  libc: Libc,
  fd: number,
  name: keyof typeof KVM,
  argument: bigint | BigUint64Array<ArrayBuffer> | Uint8Array<ArrayBuffer> = 0n,
): number {
  const errno = errnoOf(libc);
  const result = typeof argument === "bigint"
    ? libc.ioctl(fd, KVM[name], argument)
    : libc.ioctlStruct(fd, KVM[name], argument);
  if (result < 0) throw new Refusal(`KVM refuses KVM_${name} (errno ${errno.getInt32()})`);
  return result;
}

function map(libc: Libc, size: number, flags: number, fd: number): bigint {
  const errno = errnoOf(libc);
  const address = libc.mmap(null, BigInt(size), PROT_READ_WRITE, flags, fd, 0n);
  if (address !== MAP_FAILED) return address;
  throw new Refusal(
    `no memory for a guest: mmap of ${size} bytes fails (errno ${errno.getInt32()})`,
  );
}

function bytesAt(address: bigint, size: number): Uint8Array<ArrayBuffer> {
  const pointer = Deno.UnsafePointer.create(address)!;
  return new Uint8Array(Deno.UnsafePointerView.getArrayBuffer(pointer, size));
}

/** This thread's errno. Look for it first and read it at once: any other call may change it. */
function errnoOf(libc: Libc): Deno.UnsafePointerView {
  return new Deno.UnsafePointerView(libc.__errno_location()!);
}
