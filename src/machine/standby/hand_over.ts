// SPDX-License-Identifier: GPL-2.0-or-later
import { explain } from "../../errors.ts";
import { authorizeUser } from "../../guest/identity.ts";
import { openSsh, waitForLogin } from "../../guest/ready.ts";
import { Domain } from "../../libvirt/domain.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { type Context, quiet } from "../context.ts";
import { titleOf } from "../domain_xml.ts";
import { createLogin, loginTo, toHostName } from "../login.ts";
import type { Machine, MachineSpec } from "../machine.ts";
import { type MachineMetadata, readMetadata, writeMetadata } from "../metadata.ts";
import { refuseEnded } from "../network/address.ts";
import { removeMachineSafely } from "../remove.ts";
import { agentOf } from "../ssh_channel.ts";
import {
  acquireStandby,
  assignStandby,
  type Standby,
  standbyKind,
  unassignStandby,
  waitingIn,
} from "./waiting.ts";
import type { Template } from "../storage/template.ts";
import { together } from "../../wait.ts";

/** A standby machine was ready before. */
const PATIENCE_SECONDS = 15;

/**
 * Gives the job a standby machine of the same kind; null if none waits. One that does not work is
 * removed with a warning, and the next is tried.
 */
export async function useStandby(
  spec: MachineSpec,
  { template, pool }: { readonly template: Template; readonly pool: StoragePool },
  context: Context,
): Promise<Machine | null> {
  const { report: { warn, steps }, signal } = context;
  const { name, choice: { settings } } = spec;
  const kind = await standbyKind(template, settings);
  const waiting = waitingIn(await pool.volumeNames());
  for (const standby of waiting.filter((each) => each.kind === kind)) {
    signal.throwIfAborted();
    spec.master?.start(); // it is up when the guest knows the key
    await assignStandby(pool, name, standby.name);
    if (!await acquireStandby(pool, standby)) {
      await unassignStandby(pool, name, standby.name);
      continue;
    }
    steps.end("claim");
    try {
      return { name, domain: standby.name, metadata: await handOver(standby, spec, context) };
    } catch (error) {
      await removeUseless(standby, context);
      await unassignStandby(pool, name, standby.name);
      signal.throwIfAborted();
      warn(`Cannot use the standby machine "${standby.name}": ${explain(error)}`);
    }
  }
  return null;
}

/** Removes it, or leaves it to gc with a warning. */
async function removeUseless({ name }: Standby, context: Context): Promise<void> {
  try {
    await removeMachineSafely(name, quiet(context));
  } catch (error) {
    context.report.warn(
      `Cannot remove the standby machine "${name}", so gc will remove it: ${explain(error)}`,
    );
  }
}

async function handOver(
  { name: standby }: Standby,
  { name, owner, login: keys, choice: { settings }, master }: MachineSpec,
  context: Context,
): Promise<MachineMetadata> {
  const { host, report: { log, progress, steps }, signal } = context;
  using domain = await Domain.lookup(host.connection, standby);
  const waited = await readMetadata(domain);
  if (waited === null) throw new Error(`The domain "${standby}" has no metadata`);
  await refuseEnded(domain);
  const login = await createLogin(standby, { keys, settings }, host);
  const metadata: MachineMetadata = {
    ...waited,
    ...owner,
    machine: name,
    key: login.key.file,
    keepMinutes: owner.attemptDir === "" ? null : settings.keepMinutes,
    address: "", // not ready yet
  };
  await writeMetadata(domain, metadata);
  await domain.setTitle(titleOf(metadata));
  steps.end("record");
  const target = await loginTo(domain, { ...metadata, address: waited.address }, login.key);
  const { promise: keyKnown, resolve: tellKnown } = Promise.withResolvers<void>();
  const identity = {
    hostName: toHostName(name),
    user: settings.ssh.user,
    publicKey: settings.ssh.login === "template" ? null : login.key.publicKey,
  };
  await together(
    signal,
    async (signal) => {
      await authorizeUser(agentOf(domain), identity, signal);
      steps.end("keys");
      tellKnown();
    },
    async (signal) => {
      const limits = { log, progress, signal, timeoutSeconds: PATIENCE_SECONDS };
      const login = { ...target, keyKnown };
      if (master === null) (await openSsh(login, limits))[Symbol.dispose]();
      else await waitForLogin(login, limits, master.tryLogin);
    },
  );
  steps.end("ssh");
  log(`Using the standby machine "${standby}"`);
  const ready = { ...metadata, address: waited.address };
  await writeMetadata(domain, ready);
  return ready;
}
