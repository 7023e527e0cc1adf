// SPDX-License-Identifier: GPL-2.0-or-later
import { Domain } from "../../libvirt/domain.ts";
import { explain } from "../../errors.ts";
import { authorizeUser } from "../../guest/identity.ts";
import { openSsh } from "../../guest/ready.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { refuseEnded } from "../network/address.ts";
import { titleOf } from "../domain_xml.ts";
import { type MachineMetadata, readMetadata, writeMetadata } from "../metadata.ts";
import { agentOf } from "../ssh_channel.ts";
import {
  acquireStandby,
  assignStandby,
  type Standby,
  standbyKind,
  unassignStandby,
  waitingIn,
} from "./waiting.ts";
import { chooseWarmImage } from "../warm/warm_image.ts";
import { together } from "../../wait.ts";
import { removeMachineSafely } from "../remove.ts";
import { createLogin, loginTo, toHostName } from "../login.ts";
import type { Wanted } from "../create.ts";
import type { Stage } from "../context.ts";
import type { StepTimer } from "../steps.ts";

/** It was ready already. */
const PATIENCE_SECONDS = 15;

/**
 * Gives the job a machine that waits for one, if any is as the job's is to be. Null if there is none.
 * One that does not work is removed, with a warning, and the next is tried.
 */
export async function useStandby(
  wanted: Wanted,
  { pool, timer }: { readonly pool: StoragePool; readonly timer: StepTimer },
  stage: Stage,
): Promise<MachineMetadata | null> {
  const { connection, signal, warn } = stage;
  const { template, disk, settings } = wanted;
  const waiting = waitingIn(await pool.volumeNames());
  if (waiting.length === 0) return null;
  const of = { name: template, template: disk.template, settings };
  const { image } = await chooseWarmImage(connection, pool, of);
  if (image === null) return null;
  const kind = await standbyKind({ imageId: image.id, settings });
  for (const standby of waiting.filter((each) => each.kind === kind)) {
    signal.throwIfAborted();
    await assignStandby(pool, wanted.name, standby.name);
    if (!await acquireStandby(pool, standby)) {
      await unassignStandby(pool, wanted.name, standby.name);
      continue;
    }
    timer.end("claim");
    try {
      return await handOver(standby, wanted, timer, stage);
    } catch (error) {
      await removeUseless(standby, stage);
      await unassignStandby(pool, wanted.name, standby.name);
      signal.throwIfAborted();
      warn(`The waiting machine "${standby.name}" is of no use: ${explain(error)}`);
    }
  }
  return null;
}

/** Removes it, or leaves it to gc: the job can do without that. */
async function removeUseless({ name }: Standby, stage: Stage): Promise<void> {
  try {
    await removeMachineSafely(name, { ...stage, log: () => {} });
  } catch (error) {
    stage.warn(`Could not remove the waiting machine "${name}", so gc has to: ${explain(error)}`);
  }
}

async function handOver(
  { name: standby }: Standby,
  { name, owner, settings, keyFile }: Wanted,
  timer: StepTimer,
  stage: Stage,
): Promise<MachineMetadata> {
  const { connection, log, progress, signal } = stage;
  using domain = await Domain.lookup(connection, standby);
  const waited = await readMetadata(domain);
  if (waited === null) throw new Error(`The domain "${standby}" has no record`);
  await refuseEnded(domain);
  const login = await createLogin(standby, { keyFile, settings }, stage);
  const record: MachineMetadata = {
    ...waited,
    ...owner,
    machine: name,
    key: login.key.file,
    keepMinutes: owner.attemptDir === "" ? "" : String(settings.keepMinutes),
    address: "", // not ready
  };
  await writeMetadata(domain, record);
  await domain.setTitle(titleOf(record));
  timer.end("record");
  const target = await loginTo(domain, { ...record, address: waited.address }, login.key);
  const { promise: keyKnown, resolve: tellKnown } = Promise.withResolvers<void>();
  const identity = {
    hostName: toHostName(name),
    user: settings.user,
    publicKey: settings.login === "template" ? null : login.key.publicKey,
  };
  const [, ssh] = await together(
    signal,
    async (signal) => {
      await authorizeUser(agentOf(domain), identity, signal);
      timer.end("keys");
      tellKnown();
    },
    (signal) => {
      const limits = { log, progress, signal, timeoutSeconds: PATIENCE_SECONDS };
      return openSsh({ ...target, keyKnown }, limits);
    },
  );
  ssh[Symbol.dispose]();
  timer.end("ssh");
  log(`Took over the machine "${standby}", which waited for a job`);
  const ready = { ...record, address: waited.address };
  await writeMetadata(domain, ready);
  return ready;
}
