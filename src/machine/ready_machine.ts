// SPDX-License-Identifier: GPL-2.0-or-later
import { type Fault, SystemFailure } from "../errors.ts";
import { readKey } from "../guest/key.ts";
import { openSsh } from "../guest/ready.ts";
import type { SshConnection } from "../guest/ssh_connection.ts";
import type { Domain } from "../libvirt/domain.ts";
import { isLibvirtError, VIR_ERR } from "../libvirt/error.ts";
import type { Context, Host } from "./context.ts";
import { loginTo } from "./login.ts";
import { findDomainOf } from "./lookup.ts";
import { type MachineMetadata, readMetadata, writeMetadata } from "./metadata.ts";
import { refuseEnded } from "./network/address.ts";
import { within } from "../wait.ts";

/** A machine of ours. The caller disposes of it, which leaves it running. */
export interface RunningMachine extends Disposable {
  readonly domain: Domain;
  readonly metadata: MachineMetadata;
}

const CONNECT_SECONDS = 60;
/** For a guest that did not answer when a script was cancelled. */
const SILENT_MS = 3000;

/** Logs in to a ready machine. The caller disposes of the connection. */
export async function logIn(
  { domain, metadata }: RunningMachine,
  { host: { directories: { home } }, signal }: Context,
): Promise<SshConnection> {
  const key = await readKey(metadata.key, home);
  const limits = { timeoutSeconds: CONNECT_SECONDS, log: () => {} }; // the log is the script's
  const login = await loginTo(domain, metadata, key);
  if (!metadata.silent) return await openSsh(login, { ...limits, signal });
  const over = new AbortController();
  const either = AbortSignal.any([signal, over.signal]);
  const ssh = await within(openSsh(login, { ...limits, signal: either }), SILENT_MS);
  if (ssh !== null) {
    await noteAnswer(domain, "some");
    return ssh;
  }
  over.abort(); // closes a connection that comes now
  throw unusable(`The machine "${domain.name}" still does not answer`, "ssh_timeout");
}

/** Notes whether the guest answers. If not, the job's last scripts do not wait for it. */
export async function noteAnswer(domain: Domain, answer: "some" | "none"): Promise<void> {
  try {
    const metadata = await readMetadata(domain); // it may have changed meanwhile
    if (metadata !== null) await writeMetadata(domain, { ...metadata, silent: answer === "none" });
  } catch {
    // It may be gone, which others report.
  }
}

/** The machine of this name. Throws SystemFailure if it is gone, crashed, not ours or not ready. */
export async function lookupReadyMachine(machine: string, host: Host): Promise<RunningMachine> {
  using undo = new DisposableStack();
  const found = undo.use(await lookupMachine(machine, host));
  if (found.metadata.address === "") throw unusable(`The machine "${machine}" is not ready`);
  await refuseEnded(found.domain);
  undo.move();
  return found;
}

/** As {@linkcode lookupReadyMachine}, ready or not, crashed or not. */
export async function lookupMachine(machine: string, host: Host): Promise<RunningMachine> {
  const domain = await findDomainOf(machine, host);
  if (domain === null) throw gone(machine);
  using undo = new DisposableStack();
  undo.use(domain);
  const metadata = await readMetadata(domain).catch((error) => {
    throw isLibvirtError(error, VIR_ERR.NO_DOMAIN) ? gone(machine) : error; // it has just ended
  });
  if (metadata === null) throw unusable(`The domain "${machine}" was not created by libvirt-gci`);
  undo.move();
  return { domain, metadata, [Symbol.dispose]: () => domain[Symbol.dispose]() };
}

function gone(machine: string): SystemFailure {
  return unusable(`The machine "${machine}" does not exist, or has ended`, "guest_ended");
}

function unusable(what: string, fault: Fault = "other"): SystemFailure {
  return new SystemFailure({
    what,
    fault,
    advice: "Retry the job, or list the machines: libvirt-gci list. A machine that powers off or " +
      "crashes is removed",
  });
}
