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

/** Whether KVM runs guests, and if not, why. Null if this process may not try: libvirt's may. */
export type KvmAnswer =
  | { readonly works: true }
  | { readonly works: false | null; readonly reason: string };

const PAGE = 0x1000;
const RAM_SIZE = 0x5000;
const MEMORY_SIZE = RAM_SIZE + PAGE; // The page below 4 GiB comes after the RAM.
const LAST_PAGE = 2n ** 32n - BigInt(PAGE);
const TSS_ADDRESS = 0xfffbd000n; // Intel's KVM wants three pages of the guest's, away from ours.
const MAX_CPUID_ENTRIES = 256; // KVM's own limit.
const API_VERSION = 12; // The only one since Linux 2.6.22.

/** KVM or the kernel refused. With `works` null, it may not refuse another process. */
class Refusal extends Error {
  readonly works: false | null;

  constructor(message: string, works: false | null = false) {
    super(message);
    this.works = works;
  }
}

/**
 * Runs a guest with KVM on this host: a CPU with 24 KiB of memory and a program of 200 bytes, without
 * interrupts and devices. It needs a few milliseconds, more on a busy host. A guest that does not end in
 * time loses its memory, which ends it. On other architectures than x86-64 it only opens /dev/kvm.
 *
 * The answer is for this process: libvirt's daemon may have other permissions, or run elsewhere.
 */
export async function kvmRunsGuests(
  { timeoutMs = 1000, program = guestProgram() }: {
    readonly timeoutMs?: number;
    readonly program?: Uint8Array;
  } = {},
): Promise<KvmAnswer> {
  if (Deno.build.os !== "linux") return { works: false, reason: "KVM exists on Linux only" };
  const libc = loadKvm();
  using resources = new DisposableStack();
  try {
    const kvm = openKvm(libc, resources);
    if (Deno.build.arch !== "x86_64") return { works: true };
    return await runGuest(new Machine(libc, kvm, program, resources), timeoutMs);
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
      throw new Refusal(
        "/dev/kvm does not exist: switch virtualisation on in the BIOS, " +
          "then load the module: modprobe kvm_intel, or kvm_amd",
        null,
      );
    case ERRNO.EACCES:
    case ERRNO.EPERM:
      throw new Refusal(
        "no permission on /dev/kvm: add this user to the group that owns it, " +
          "usually: usermod --append --groups kvm USER",
        null,
      );
    default:
      throw new Refusal(`/dev/kvm cannot be opened (errno ${errno.getInt32()})`);
  }
}

/** A VM with one CPU and the program in its memory, until `resources` are disposed of. */
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
    // A CPU that still runs would write to whatever is mapped here next.
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

  /** Runs the CPU until it stops. Resolves to false if KVM_RUN failed. */
  async run(): Promise<boolean> {
    this.#running = true;
    const result = await this.#libc.ioctlWait(this.#cpu, KVM.RUN, 0n);
    this.#running = false;
    return result >= 0;
  }

  /** Why the CPU stopped, see KVM_EXIT. */
  get exitReason(): number {
    return this.#state.getUint32(KVM_RUN_OFFSET.exitReason, true);
  }

  /** The CPU's output after KVM_EXIT.IO. */
  get output(): { port: number; byte: number } {
    const port = this.#state.getUint16(KVM_RUN_OFFSET.ioPort, true);
    const data = this.#state.getBigUint64(KVM_RUN_OFFSET.ioDataOffset, true);
    return { port, byte: this.#state.getUint8(Number(data)) };
  }

  /** Ends a run: KVM_RUN has no timeout, but fails if the CPU cannot fetch an instruction. */
  takeMemoryAway(): void {
    this.#libc.mprotect(this.#memory, BigInt(MEMORY_SIZE), PROT_NONE);
  }
}

/** Runs the guest until its end, a failure or the timeout. */
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
        return failure(step, `not within ${timeoutMs} ms`);
      }
      if (exitReason === KVM_EXIT.INTR) continue; // a signal came to the thread
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
      return "KVM cannot emulate an instruction of the guest";
    case KVM_EXIT.FAIL_ENTRY:
      return "the CPU refuses to enter the guest";
    case KVM_EXIT.SHUTDOWN:
      return "triple fault";
    default:
      return `exit reason ${exitReason} of KVM_RUN`;
  }
}

/** Makes a request to KVM, with a number or a structure. Throws {@linkcode Refusal}. */
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

/** This thread's errno. Get it before the call and read it right after. */
function errnoOf(libc: Libc): Deno.UnsafePointerView {
  return new Deno.UnsafePointerView(libc.__errno_location()!);
}
