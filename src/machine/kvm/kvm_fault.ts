// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../../errors.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { isLibvirtError } from "../../libvirt/error.ts";
import type { KvmAnswer } from "./kvm_probe.ts";
import type { MachineSettings } from "../../settings/settings.ts";

/** The disadvantages of machines without KVM. */
export const EMULATION = "emulation is slow and, as QEMU's own guide says, no security boundary " +
  "(https://www.qemu.org/docs/master/system/security.html)";

/** A machine that may fail because of KVM. */
export interface KvmUser {
  readonly settings: Pick<MachineSettings, "domainType" | "timeouts">;
  readonly connection: Pick<Connection, "isLocal">;
  /** Whether KVM runs guests on this host; by default, a guest is run. */
  readonly kvm?: () => Promise<KvmAnswer>;
}

/** Long, because the probe's guest may wait for a CPU, and a wrong no fails the job. */
const PROBE_MS = 5000;

/** Matches KVM in errors of QEMU and libvirt, but not in the path /usr/libexec/qemu-kvm. */
const NAMES_KVM = /(?<!qemu-)\bkvm\b(?!-)/i;

/** The failure if KVM runs no guests on this host, or if libvirt's `cause` names KVM; else null. */
export async function findKvmFault(
  { settings, connection, kvm = probe }: KvmUser,
  cause?: unknown,
): Promise<SystemFailure | null> {
  if (settings.domainType !== "kvm") return null;
  const answer = connection.isLocal ? await kvm() : null;
  const isBroken = answer?.works === false;
  if (!isBroken && !(isLibvirtError(cause) && NAMES_KVM.test(cause.words))) return null;
  return new SystemFailure({
    fault: "kvm",
    what: isBroken
      ? `KVM does not run guests on this host: ${answer.reason}`
      : "libvirt cannot use KVM on the machine's host",
    cause,
    advice: `Run libvirt-gci doctor to check KVM, or set "domain_type: qemu", but ${EMULATION}`,
  });
}

async function probe(): Promise<KvmAnswer> {
  const { kvmRunsGuests } = await import("./kvm_probe.ts"); // rarely needed
  return await kvmRunsGuests({ timeoutMs: PROBE_MS });
}

/** The wait before KVM is checked. Most guests have their address by then. */
const PATIENCE_MS = 10_000;

/** Gives a function to call during a wait. Once, after some time, it throws {@linkcode findKvmFault}'s failure. */
export function watchKvm(user: KvmUser): () => Promise<void> {
  const patience = Math.min(PATIENCE_MS, user.settings.timeouts.addressSeconds * 1000 / 2);
  let next = performance.now() + patience;
  return async () => {
    if (performance.now() < next) return;
    next = Infinity;
    const fault = await findKvmFault(user);
    if (fault !== null) throw fault;
  };
}
