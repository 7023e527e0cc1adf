// SPDX-License-Identifier: GPL-2.0-or-later

// On some hosts that are VMs themselves, /dev/kvm opens but KVM interprets a guest's kernel. That is a
// thousand times slower, and fails at an instruction that the interpreter does not know, such as
// CMPXCHG16B, with which Linux allocates memory. So this guest does what a kernel does: from the reset
// vector to 64-bit mode, CMPXCHG16B, then a loop that takes a CPU 2 ms and an interpreter seconds.
//
// It is the last 256 bytes below 4 GiB, where a CPU starts. A line of the listing has an offset, the bytes
// and the instruction. The guest needs 20 KiB of zeros at address 0, no BIOS and no device. It writes
// each step to port 0xe9, which QEMU can print.
const LISTING = `
00  b0 01                          mov    $1, %al                 # step 1: 16-bit mode
02  e6 e9                          out    %al, $0xe9
04  66 c7 06 00 10 03 20 00 00     movl   $0x2003, 0x1000         # PML4[0]: PDPT at 0x2000
0d  66 c7 06 00 20 03 30 00 00     movl   $0x3003, 0x2000         # PDPT[0]: PD at 0x3000
16  66 c7 06 18 20 03 30 00 00     movl   $0x3003, 0x2018         # PDPT[3]: the same PD
1f  66 c7 06 00 30 83 00 00 00     movl   $0x00000083, 0x3000     # PD[0]: the first 2 MiB
28  66 c7 06 f8 3f 83 00 e0 ff     movl   $0xffe00083, 0x3ff8     # PD[511]: those below 4 GiB
31  2e 66 0f 01 16 a1 ff           lgdtl  %cs:0xffa1
38  66 b8 00 10 00 00              mov    $0x1000, %eax
3e  0f 22 d8                       mov    %eax, %cr3
41  66 b8 20 00 00 00              mov    $0x20, %eax             # PAE
47  0f 22 e0                       mov    %eax, %cr4
4a  66 b9 80 00 00 c0              mov    $0xc0000080, %ecx       # EFER
50  66 31 d2                       xor    %edx, %edx
53  66 b8 00 01 00 00              mov    $0x100, %eax            # LME
59  0f 30                          wrmsr
5b  66 b8 01 00 00 80              mov    $0x80000001, %eax       # PG and PE
61  0f 22 c0                       mov    %eax, %cr0
64  66 ea 6c ff ff ff 08 00        ljmpl  $0x08, $0xffffff6c      # to offset 6c
6c  b0 02                          mov    $2, %al                 # step 2: 64-bit mode
6e  e6 e9                          out    %al, $0xe9
70  b8 10 00 00 00                 mov    $0x10, %eax
75  8e d8                          mov    %eax, %ds
77  8e c0                          mov    %eax, %es
79  8e e0                          mov    %eax, %fs
7b  8e e8                          mov    %eax, %gs
7d  8e d0                          mov    %eax, %ss
7f  31 c0                          xor    %eax, %eax              # RDX and RAX are 0
81  f0 48 0f c7 0c 25 00 40 00 00  lock cmpxchg16b 0x4000         # as is the memory
8b  75 13                          jnz    0xa0
8d  b0 03                          mov    $3, %al                 # step 3: CMPXCHG16B
8f  e6 e9                          out    %al, $0xe9
91  b9 00 09 3d 00                 mov    $4000000, %ecx
96  ff c9                          dec    %ecx
98  75 fc                          jnz    0x96
9a  b0 04                          mov    $4, %al                 # step 4: the loop
9c  e6 e9                          out    %al, $0xe9
9e  e6 f4                          out    %al, $0xf4
a0  f4                             hlt
a1  17 00 a7 ff ff ff              .word 23; .long 0xffffffa7     # the GDT's limit and address
a7  00 00 00 00 00 00 00 00        .quad 0
af  ff ff 00 00 00 9b af 00        .quad 0x00af9b000000ffff       # 08: 64-bit code
b7  ff ff 00 00 00 93 cf 00        .quad 0x00cf93000000ffff       # 10: data
f0  e9 0d ff                       jmp    0x00                    # the reset vector
`;

/** The step that failed after the guest wrote this number; ends "KVM starts but a guest's …". */
export const GUEST_STEPS = [
  "first instruction never runs",
  "CPU never reaches 64-bit mode",
  "kernel never gets past the instruction CMPXCHG16B",
  "loop of 2 ms never ends",
  "last output never arrives",
];

/** The port to which the guest writes at its end. */
export const GUEST_END_PORT = 0xf4;

/** The guest's program: the last 256 bytes below 4 GiB. */
export function guestProgram(): Uint8Array<ArrayBuffer> {
  const program = new Uint8Array(256);
  for (const line of LISTING.trim().split("\n")) {
    const [offset = "", bytes = ""] = line.split("  ");
    program.set(bytes.split(" ").map((byte) => parseInt(byte, 16)), parseInt(offset, 16));
  }
  return program;
}
