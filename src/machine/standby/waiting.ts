// SPDX-License-Identifier: GPL-2.0-or-later
import type { Connection } from "../../libvirt/connection.ts";
import { Domain } from "../../libvirt/domain.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Template } from "../storage/template.ts";
import { ofKind, STANDBY_NAME, volumeName } from "../storage/volume_names.ts";
import { createRawVolume, removeVolume } from "../storage/volumes.ts";
import { randomHex } from "../../random.ts";
import { fixedValues, type MachineSettings } from "../../settings/settings.ts";
import { shortHash } from "../../sha256.ts";

/**
 * A standby machine is created before a job asks for it. The names of two kinds of empty volumes say what
 * becomes of it: `STANDBY.KIND.waiting` exists while it waits, and `MACHINE.STANDBY.assigned` from before
 * a job's machine tries to take it over until cleanup. The process that deletes the first has the machine.
 */
export interface Standby {
  /** The name of its domain and its volumes. */
  readonly name: string;
  /** See {@linkcode standbyKind}. */
  readonly kind: string;
}

const NAME = new RegExp(`^${STANDBY_NAME}$`);

/** A name for a new standby machine. */
export function newStandbyName(): string {
  return `standby-${randomHex(8)}`;
}

/** Whether this is the name of a standby machine, also after a job took it. */
export function isStandbyName(machine: string): boolean {
  return NAME.test(machine);
}

/** The machines that wait, by the pool's volumes. */
export function waitingIn(volumes: readonly string[]): Standby[] {
  return ofKind(volumes, "waiting").filter(({ name }) => isStandbyName(name))
    .map(({ name, fields: [kind] }) => ({ name, kind }));
}

/** Whether its guest runs. After a reboot of the host, only its volumes are left. */
export async function isAlive({ name }: Standby, connection: Connection): Promise<boolean> {
  using domain = await Domain.find(connection, name);
  return domain !== null && await domain.state() === "active";
}

/** The machines that took over standby machines, or tried to, by the pool's volumes. */
export function assignmentsIn(
  volumes: readonly string[],
): { readonly machine: string; readonly standby: string }[] {
  return ofKind(volumes, "assigned")
    .map(({ name: machine, fields: [standby] }) => ({ machine, standby }));
}

/** Lets any job have the machine from now on. */
export async function markWaiting(pool: StoragePool, { name, kind }: Standby): Promise<void> {
  using _ = await createRawVolume(pool, volumeName(name, "waiting", kind), 0);
}

/** Tries to take the machine. Of all who try, one succeeds. */
export function acquireStandby(pool: StoragePool, { name, kind }: Standby): Promise<boolean> {
  return removeVolume(pool, volumeName(name, "waiting", kind));
}

/** Notes that the machine of this name tries to take over the standby machine. */
export async function assignStandby(
  pool: StoragePool,
  machine: string,
  standby: string,
): Promise<void> {
  using _ = await createRawVolume(pool, volumeName(machine, "assigned", standby), 0);
}

/** Takes {@linkcode assignStandby} back. */
export async function unassignStandby(
  pool: StoragePool,
  machine: string,
  standby: string,
): Promise<void> {
  await removeVolume(pool, volumeName(machine, "assigned", standby));
}

/** What a job and a standby machine must share: the template as it is now, and the fixed settings. */
export function standbyKind(
  { pool, volume, path, modified }: Template,
  settings: MachineSettings,
): Promise<string> {
  return shortHash(JSON.stringify([[pool, volume, path, modified], fixedValues(settings)]));
}
