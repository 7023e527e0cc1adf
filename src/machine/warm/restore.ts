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

/** A daemon of this host, reached by its own socket, and not by one that somebody forwards. */
const OWN_SOCKET = /^\w+:\/\/\/\w+$/;

/**
 * Since this version at the latest, libvirt opens the file twice, and reads what stands before the RAM
 * each time (src/qemu/qemu_saveimage.c).
 */
const FIRST_THAT_READS_TWICE = 11_002_000;

/** Saved RAM, and what is to stand before it instead, as many bytes. */
export interface SavedRam {
  readonly ram: Volume;
  readonly beforeRam: Uint8Array<ArrayBuffer>;
  /** Of virDomainSaveRestoreFlags. */
  readonly flags: number;
}

/**
 * Starts a domain from saved RAM, which libvirt reads through a pipe from where it is. Resolves to
 * whether it did: the daemon has to see this process and to do without AppArmor and SELinux, and this
 * user to be one that may read the volume. If libvirt tries and fails, `warn` is told why.
 */
export async function restoreInPlace(
  { ram, beforeRam, flags }: SavedRam,
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
 * Whether libvirt confines machines by AppArmor or SELinux, by its capabilities. AppArmor's helper,
 * which allows a machine its files, finds none at a pipe's path (src/security/virt-aa-helper.c).
 */
export function confines(capabilitiesXml: string): boolean {
  return securityModels(capabilitiesXml).some((model) => model !== "none" && model !== "dac");
}
