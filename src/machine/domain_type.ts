// SPDX-License-Identifier: GPL-2.0-or-later
import type { Connection } from "../libvirt/connection.ts";
import { type KvmAnswer, kvmRunsGuests } from "./kvm_probe.ts";

/**
 * The domain type for this setting. `auto` is kvm where KVM really runs guests; /dev/kvm alone does
 * not say so. Where nobody can try it, on another host, without permission or in a container without
 * that device, `auto` is what libvirt says it can start.
 */
export async function chooseDomainType(
  connection: Connection,
  setting: string,
  log: (line: string) => void,
): Promise<string> {
  if (setting !== "auto") return setting;
  const kvm = connection.isLocal ? await kvmRunsGuests() : null;
  if (kvm?.works !== false && /<domain type=["']kvm/.test(await connection.capabilities())) {
    if (kvm?.works === null) log(`Using KVM, which cannot be tried from here: ${kvm.reason}`);
    return "kvm";
  }
  log(`Emulating the machine, which is slow: ${whyNot(kvm)}`);
  return "qemu";
}

function whyNot(kvm: KvmAnswer | null): string {
  if (kvm?.works === false) return kvm.reason;
  return `libvirt offers no KVM${kvm?.works === null ? `, and ${kvm.reason}` : ""}`;
}
