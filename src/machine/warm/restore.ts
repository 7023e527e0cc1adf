// SPDX-License-Identifier: GPL-2.0-or-later
import { isSeenByPeers } from "../../../ffi/peers.ts";
import { withSpliced } from "../../../ffi/pipe.ts";
import { explain } from "../../errors.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { Domain } from "../../libvirt/domain.ts";
import { isLibvirtError } from "../../libvirt/error.ts";
import type { Volume } from "../../libvirt/volume.ts";
import { securityModels } from "../security_models.ts";
import { isSparse } from "./saved_image.ts";

/** A daemon on this host, reached by its own socket, not by a forwarded one. */
const OWN_SOCKET = /^\w+:\/\/\/\w+$/;

/** libvirt then reads the bytes before the RAM twice (src/qemu/qemu_saveimage.c). */
const FIRST_THAT_READS_TWICE = 11_002_000;

/**
 * Starts a domain from saved RAM, which libvirt reads through a pipe, with `beforeRam` in place of the
 * bytes before it. Resolves to whether it did. That needs a daemon that sees this process, no AppArmor or
 * SELinux, and permission to read the volume.
 */
export async function restoreInPlace(
  { ram, beforeRam, flags }: {
    readonly ram: Volume;
    readonly beforeRam: Uint8Array<ArrayBuffer>;
    readonly flags: number;
  },
  connection: Connection,
  warn: (text: string) => void,
): Promise<boolean> {
  if (!OWN_SOCKET.test(connection.uri) || isSparse(beforeRam) || !isSeenByPeers()) return false;
  if (confines(await connection.capabilities())) return false;
  const readsTwice = await connection.libVersion() >= FIRST_THAT_READS_TWICE;
  const before = readsTwice ? new Uint8Array([...beforeRam, ...beforeRam]) : beforeRam;
  const spliced = { before, file: await ram.path(), offset: beforeRam.length };
  try {
    return await withSpliced(spliced, async (path) => {
      await Domain.restore(connection, path, flags);
      return true;
    }) ?? false;
  } catch (error) {
    if (!isLibvirtError(error) || error.isLost) throw error;
    warn(`libvirt cannot read the RAM in place, so libvirt-gci copies it: ${explain(error)}`);
    return false;
  }
}

/**
 * Whether libvirt confines machines by AppArmor or SELinux, by its capabilities. AppArmor's helper fails
 * for a pipe (src/security/virt-aa-helper.c).
 */
export function confines(capabilitiesXml: string): boolean {
  return securityModels(capabilitiesXml).some((model) => model !== "none" && model !== "dac");
}
