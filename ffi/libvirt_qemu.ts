// SPDX-License-Identifier: GPL-2.0-or-later
import { blocking as daemon } from "./declare.ts";
import { virDomainPtr } from "./libvirt.ts";

/**
 * The functions of libvirt-qemu.so (6.0.0). They take handles of libvirt.so, and leave errors in their
 * connections.
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

export type LibvirtQemu = Deno.DynamicLibrary<typeof qemuSymbols>["symbols"];

let library: LibvirtQemu | undefined;

/** The library, loaded at the first call: most jobs ask no guest agent. Throws Deno's own error. */
export function loadLibvirtQemu(): LibvirtQemu {
  return library ??= Deno.dlopen("libvirt-qemu.so.0", qemuSymbols).symbols;
}
