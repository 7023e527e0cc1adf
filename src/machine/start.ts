// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import type { Connection } from "../libvirt/connection.ts";
import {
  Domain,
  VIR_DOMAIN_START_RESET_NVRAM,
  VIR_DOMAIN_START_VALIDATE,
} from "../libvirt/domain.ts";
import { isLibvirtError, isLost, VIR_ERR } from "../libvirt/error.ts";
import { failureOf } from "./context.ts";
import { type DomainOnDisk, domainXml } from "./domain_xml.ts";
import { findKvmFault } from "./kvm/kvm_fault.ts";
import { type Start, startedAs } from "./machine.ts";
import { randomMac } from "./network/card.ts";
import { reach } from "./reach.ts";
import { createDisk } from "./storage/disks.ts";
import { requireUnchanged, type Template } from "./storage/template.ts";
import { retry } from "../wait.ts";

/** Boots the machine on its own disk. */
export const boot: Start = async (machine, pool, context) => {
  const { host: { connection }, report, signal } = context;
  const { name, template, settings, card } = machine;
  const { diskGib, domainType } = settings;
  const overlayPath = await createDisk(pool, name, { template, diskGib });
  report.steps.end("overlay");
  // Not the MAC of a failed resume, whose lease may not be for this guest, unless the network keeps
  // the address for the card.
  const metadata = { ...machine.metadata, mac: card?.mac ?? randomMac() };
  const booting = { ...machine, metadata, overlayPath };
  using undo = new DisposableStack();
  const domain = undo.use(await startMachine(connection, booting, { template, signal }));
  await requireUnchanged(connection, template);
  report.steps.end("start");
  report.log(
    `Started the machine "${name}" from the template "${metadata.template}" (${domainType})`,
  );
  undo.move();
  return startedAs(domain, (context) => reach(domain, booting, {}, context));
};

/** Starts the machine as a transient domain, which is gone once it stops. Throws SystemFailure. */
export async function startMachine(
  connection: Connection,
  machine: DomainOnDisk,
  { template, signal }: { readonly template: Template; readonly signal: AbortSignal },
): Promise<Domain> {
  try {
    return await createDomain(connection, machine, signal);
  } catch (cause) {
    const what = `Cannot start the machine "${machine.name}"`;
    const { explainLock } = await import("./storage/template_writer.ts");
    const reason = isLost(cause) ? null : await explainLock(cause, template, connection) ??
      await findKvmFault({ ...machine, connection }, cause);
    if (reason !== null) throw new SystemFailure({ what, cause: reason });
    throw failureOf(cause, `started the machine "${machine.name}"`, {
      fault: "start",
      what,
      advice:
        `Check QEMU's messages in /var/log/libvirt/qemu/${machine.name}.log on the host, and ` +
        "the settings of the machine",
    });
  }
}

const EAGAIN = 11;

/**
 * Creates the domain. Tries again after EAGAIN, which libvirt (9.0) does not handle: the kernel's verifier
 * refuses the program that guards the machine's devices if a signal comes meanwhile.
 */
async function createDomain(
  connection: Connection,
  machine: DomainOnDisk,
  signal: AbortSignal,
): Promise<Domain> {
  const xml = domainXml(machine).toString();
  // libvirt then creates the firmware's variables from their template.
  const nvramFlag = machine.nvramPath === null ? 0 : VIR_DOMAIN_START_RESET_NVRAM;
  const flags = VIR_DOMAIN_START_VALIDATE | nvramFlag;
  return await retry(() => Domain.create(connection, machine.name, xml, flags), {
    tries: 5,
    pauseMs: 200,
    isTransient: (error) => isLibvirtError(error, VIR_ERR.SYSTEM_ERROR) && error.errno === EAGAIN,
    signal,
  });
}
