// SPDX-License-Identifier: GPL-2.0-or-later
import type { Connection } from "../libvirt/connection.ts";
import { kvmRunsGuests } from "./kvm_probe.ts";

/**
 * The domain type for this setting. `auto` is kvm where KVM really runs guests; /dev/kvm alone does
 * not say so. Where nobody can try it, on another host or without permission, `auto` is what libvirt
 * says it can start.
 */
export async function chooseDomainType(
  connection: Connection,
  setting: string,
  log: (line: string) => void,
): Promise<string> {
  if (setting !== "auto") return setting;
  const kvm = connection.isLocal ? await kvmRunsGuests() : null;
  if (kvm?.works !== false && /<domain type=["']kvm/.test(await connection.capabilities())) {
    if (kvm?.works === null) log(`Using KVM, which this user cannot try: ${kvm.reason}`);
    return "kvm";
  }
  const reason = kvm?.works === false ? kvm.reason : "libvirt offers no KVM";
  log(`Emulating the machine, which is slow: ${reason}`);
  return "qemu";
}
