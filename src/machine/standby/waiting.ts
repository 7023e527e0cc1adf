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
 * Machines that were resumed before any job asked for them. Two kinds of empty volumes say what
 * becomes of them, by their names alone: `STANDBY.KIND.waiting` as long as it waits, and
 * `MACHINE.STANDBY.assigned` from before a machine of this name tries to take it over until cleanup.
 * Only one can delete the first, and whoever did has the machine.
 */
export interface Standby {
  /** The name of its domain, and of all volumes but the last kind. */
  readonly name: string;
  /** See {@linkcode standbyKind}. */
  readonly kind: string;
}

const NAME = new RegExp(`^${STANDBY_NAME}$`);

/** A name for a new machine. */
export function newStandbyName(): string {
  return `standby-${randomHex(8)}`;
}

/** Whether this is the name of a machine that waits, or waited once. */
export function isStandbyName(machine: string): boolean {
  return NAME.test(machine);
}

/** The machines that wait, of these volumes. */
export function waitingIn(volumes: readonly string[]): Standby[] {
  return ofKind(volumes, "waiting").filter(({ name }) => isStandbyName(name))
    .map(({ name, fields: [kind] }) => ({ name, kind }));
}

/** Whether its guest runs: after a boot of the host, only its volumes are left. */
export async function isAlive({ name }: Standby, connection: Connection): Promise<boolean> {
  using domain = await Domain.find(connection, name);
  return domain !== null && await domain.state() === "active";
}

/** Which machines took these over, or tried to. */
export function assignmentsIn(
  volumes: readonly string[],
): { readonly machine: string; readonly standby: string }[] {
  return ofKind(volumes, "assigned").map(({ name, fields: [standby] }) => ({
    machine: name,
    standby,
  }));
}

/** From now on, any job may have it. */
export async function markWaiting(pool: StoragePool, { name, kind }: Standby): Promise<void> {
  using _ = await createRawVolume(pool, volumeName(name, "waiting", kind), 0);
}

/** Whether it is ours now: of all who try, one gets it. */
export function acquireStandby(pool: StoragePool, { name, kind }: Standby): Promise<boolean> {
  return removeVolume(pool, volumeName(name, "waiting", kind));
}

/** Says that the machine of this name is the one that waited, if whoever says it can claim that. */
export async function assignStandby(
  pool: StoragePool,
  machine: string,
  standby: string,
): Promise<void> {
  using _ = await createRawVolume(pool, volumeName(machine, "assigned", standby), 0);
}

/** Takes that back. */
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
