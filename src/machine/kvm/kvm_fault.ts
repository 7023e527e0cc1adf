// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../../errors.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { isLibvirtError } from "../../libvirt/error.ts";
import type { KvmAnswer } from "./kvm_probe.ts";
import type { MachineSettings } from "../../settings/settings.ts";

/** What speaks against doing without KVM, and who says so. */
export const EMULATION = "emulation is slow and, as QEMU's own guide says, no security boundary " +
  "(https://www.qemu.org/docs/master/system/security.html)";

/** A machine that may not come up because of KVM. */
export interface KvmUser {
  readonly settings: Pick<MachineSettings, "domainType" | "timeouts">;
  readonly connection: Pick<Connection, "isLocal">;
  /** Whether KVM runs guests on this host; by default a guest is run. */
  readonly kvm?: () => Promise<KvmAnswer>;
}

/** On a busy host, the probe's guest may wait for a processor: a wrong no would fail the job. */
const PROBE_MS = 5000;

/** QEMU's and libvirt's words for KVM, and not the emulator's path, such as /usr/libexec/qemu-kvm. */
const NAMES_KVM = /(?<!qemu-)\bkvm\b(?!-)/i;

/**
 * The failure that says that KVM keeps the machine from coming up: it runs no guest on this host, or
 * `cause`, of libvirt's, names it. Null if it is something else, or if that cannot be known from here.
 */
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
    advice: `See what KVM lacks: libvirt-gci doctor. Or set "domain_type: qemu": ${EMULATION}`,
  });
}

async function probe(): Promise<KvmAnswer> {
  const { kvmRunsGuests } = await import("./kvm_probe.ts"); // what few machines need
  return await kvmRunsGuests({ timeoutMs: PROBE_MS });
}

/** How long a wait goes on before KVM is looked at: most guests have their address by then. */
const PATIENCE_MS = 10_000;

/**
 * What a wait for the machine asks between its probes: once, some time from now, it throws the failure of
 * {@linkcode findKvmFault} if there is one, since no waiting mends that.
 */
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
