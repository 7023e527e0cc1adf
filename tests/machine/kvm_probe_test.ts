// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { loadKvm } from "../../ffi/kvm.ts";
import { guestProgram } from "../../src/machine/kvm/kvm_guest.ts";
import { kvmRunsGuests } from "../../src/machine/kvm/kvm_probe.ts";

loadKvm(); // Now, since Deno 2.7 takes what a test loads for a leak.

const withoutQemu = !hasQemu();
const withoutKvm = Deno.build.arch !== "x86_64" || !opens("/dev/kvm");

const QEMU_SUCCESS = (4 << 1) | 1; // isa-debug-exit's status for the guest's last byte

Deno.test({
  name: "the guest comes through all its steps on a CPU that QEMU emulates",
  ignore: withoutQemu,
  async fn() {
    const { steps, status } = await runInQemu("tcg", guestProgram(), 30_000);
    assert.equal(steps, "1 2 3 4");
    assert.equal(status, QEMU_SUCCESS);
  },
});

Deno.test({
  name: "kvmRunsGuests() answers as QEMU with KVM does with the same guest",
  ignore: withoutQemu || withoutKvm,
  async fn() {
    const answer = await kvmRunsGuests();
    // Where the guest cannot go on, QEMU waits for a debugger.
    const { status } = await runInQemu("kvm", guestProgram(), answer.works ? 30_000 : 3000);
    assert.equal(status === QEMU_SUCCESS, answer.works);
  },
});

Deno.test("kvmRunsGuests() answers in time, and says why if the answer is no", async () => {
  const start = performance.now();
  const answer = await kvmRunsGuests({ timeoutMs: 500 });
  assert.ok(performance.now() - start < 5000);
  if (!answer.works) assert.match(answer.reason, /KVM|\/dev\/kvm/);
});

Deno.test({
  name: "a guest of what every KVM knows comes through",
  ignore: withoutKvm,
  async fn() {
    assert.deepEqual(await kvmRunsGuests({ program: easyProgram() }), { works: true });
  },
});

Deno.test({
  name: "a guest whose loop never ends is stopped",
  ignore: withoutKvm,
  async fn() {
    const program = easyProgram();
    program.set([0xeb, 0xfe], LOOP); // jmp to itself
    const start = performance.now();
    const answer = await kvmRunsGuests({ program, timeoutMs: 1000 });
    assert.ok(performance.now() - start < 5000);
    assert.match(reasonOf(answer), /a guest's loop of 2 ms never ends \(not within 1000 ms\)/);
  },
});

Deno.test({
  name: "a guest that halts on its way to 64-bit mode is said to have done so",
  ignore: withoutKvm,
  async fn() {
    const program = easyProgram();
    program[WRMSR] = 0xf4; // hlt
    const answer = await kvmRunsGuests({ program });
    assert.match(reasonOf(answer), /never reaches 64-bit mode \(exit reason 5 /);
  },
});

Deno.test({
  name: "kvmRunsGuests() leaves no file and no memory of KVM behind",
  ignore: withoutKvm,
  async fn() {
    await kvmRunsGuests();
    await kvmRunsGuests({ program: easyProgram() });
    await kvmRunsGuests({ program: ENDLESS, timeoutMs: 1000 });
    const left = [...openFiles(), ...mappedFiles()];
    // Linux calls memory that is shared and has no file /dev/zero.
    assert.deepEqual(
      left.filter((name) => /^\/dev\/kvm$|anon_inode:\[?kvm|\/dev\/zero/.test(name)),
      [],
    );
  },
});

Deno.test("a process that has asked ends by itself", async () => {
  const { success, milliseconds } = await runScript(`await kvmRunsGuests({ timeoutMs: 100 });`);
  assert.ok(success);
  assert.ok(milliseconds < 5000);
});

Deno.test({
  name: "a process whose guest still runs ends at Deno.exit()",
  ignore: withoutKvm,
  async fn() {
    const { success, milliseconds } = await runScript(`
      kvmRunsGuests({ program: Uint8Array.of(0xeb, 0xfe, ...Array(14)), timeoutMs: 60_000 });
      setTimeout(() => Deno.exit(0), 100);
    `);
    assert.ok(success);
    assert.ok(milliseconds < 5000);
  },
});

/** A jmp to itself at the reset vector. */
const ENDLESS = Uint8Array.of(0xeb, 0xfe, ...Array<number>(14).fill(0));

// Offsets in the guest's listing.
const WRMSR = 0x59;
const CMPXCHG16B = 0x81;
const LOOP_TURNS = 0x92;
const LOOP = 0x96;

/** The guest's program without CMPXCHG16B and with a short loop: an interpreter will do. */
function easyProgram(): Uint8Array {
  const program = guestProgram();
  program.fill(0x90, CMPXCHG16B, CMPXCHG16B + 12); // nop, up to the jnz and with it
  new DataView(program.buffer).setUint32(LOOP_TURNS, 10, true);
  return program;
}

function reasonOf(answer: Awaited<ReturnType<typeof kvmRunsGuests>>): string {
  assert.ok(!answer.works);
  return answer.reason;
}

/** The steps that the guest reports in QEMU, and QEMU's exit status. */
async function runInQemu(
  accelerator: string,
  program: Uint8Array,
  timeoutMs: number,
): Promise<{ steps: string; status: number }> {
  const bios = await Deno.makeTempFile();
  try {
    const image = new Uint8Array(0x10000); // QEMU maps it so that it ends at 4 GiB.
    image.set(program, image.length - program.length);
    await Deno.writeFile(bios, image);
    const { stdout, code } = await new Deno.Command("qemu-system-x86_64", {
      args: [
        "-accel",
        accelerator,
        "-bios",
        bios,
        "-display",
        "none",
        "-nodefaults",
        "-no-reboot", // A crash ends it.
        "-chardev",
        "stdio,id=steps",
        "-device",
        "isa-debugcon,iobase=0xe9,chardev=steps",
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=1",
      ],
      stdin: "null",
      stderr: "null",
      signal: AbortSignal.timeout(timeoutMs),
    }).output();
    return { steps: stdout.slice(0, 10).join(" "), status: code };
  } finally {
    await Deno.remove(bios);
  }
}

/** Whether a process of its own that does this succeeded, and how long it lived. */
async function runScript(code: string): Promise<{ success: boolean; milliseconds: number }> {
  const probe = JSON.stringify(import.meta.resolve("../../src/machine/kvm/kvm_probe.ts"));
  const start = performance.now();
  const { success } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", `import { kvmRunsGuests } from ${probe};\n${code}`],
    signal: AbortSignal.timeout(20_000),
  }).output();
  return { success, milliseconds: performance.now() - start };
}

function openFiles(): string[] {
  return [...Deno.readDirSync("/proc/self/fd")].flatMap(({ name }) => {
    try {
      return [Deno.readLinkSync(`/proc/self/fd/${name}`)];
    } catch {
      return []; // The one that lists the directory is closed by now.
    }
  });
}

function mappedFiles(): string[] {
  return Deno.readTextFileSync("/proc/self/maps").split("\n");
}

function opens(path: string): boolean {
  try {
    Deno.openSync(path, { read: true, write: true }).close();
    return true;
  } catch {
    return false;
  }
}

function hasQemu(): boolean {
  try {
    return new Deno.Command("qemu-system-x86_64", { args: ["--version"] }).outputSync().success;
  } catch {
    return false;
  }
}
