// SPDX-License-Identifier: GPL-2.0-or-later
import { blocking as daemon } from "./declare.ts";
import { virDomainPtr } from "./libvirt.ts";

/**
 * The functions of libvirt-qemu.so that we call, as libvirt-qemu.h declares them. That library works
 * on the handles of libvirt.so and leaves its errors in the same connections. All exist since libvirt
 * 6.0.0, which is the oldest that we support.
 */
export const qemuSymbols = {
  virDomainQemuAgentCommand: daemon(
    /* char * */ "pointer",
    virDomainPtr,
    /* const char *cmd */ "buffer",
    /* int timeout */ "i32",
    /* unsigned int flags */ "u32",
  ), // ours to free, NULL on error
} as const satisfies Deno.ForeignLibraryInterface;

/** The functions of {@linkcode qemuSymbols}, ready to call. */
export type LibvirtQemu = Deno.DynamicLibrary<typeof qemuSymbols>["symbols"];

let library: LibvirtQemu | undefined;

/**
 * The library, loaded at the first call: most jobs ask no guest agent for anything. Throws Deno's own
 * error if it is missing; it comes in the same package as libvirt.so.
 */
export function loadLibvirtQemu(): LibvirtQemu {
  return library ??= Deno.dlopen("libvirt-qemu.so.0", qemuSymbols).symbols;
}
