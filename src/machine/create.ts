// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { waitForSsh } from "../guest/ready.ts";
import type { Domain } from "../libvirt/domain.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import { refuseEnded, waitForAddress } from "./network/address.ts";
import type { Card } from "./network/card.ts";
import { type MachineDomain, randomMac } from "./domain_xml.ts";
import { watchKvm } from "./kvm/kvm_fault.ts";
import type { Owner } from "./owner.ts";
import { type MachineMetadata, writeMetadata } from "./metadata.ts";
import { CHANNEL_ADDRESS } from "./ssh_channel.ts";
import { createDisk, setFilter, startMachine } from "./start.ts";
import { requireUnchanged, type Template } from "./storage/template.ts";
import { leaveQueue, type QueueEntry } from "./queue/queue_entry.ts";
import type { MachineSettings } from "../settings/machine_settings.ts";
import { together } from "../wait.ts";
import { loginTo, type MachineLogin } from "./login.ts";
import type { Stage } from "./context.ts";
import type { StepTimer } from "./steps.ts";

/** A machine that prepare is making, but for its disk. */
export interface NewMachine extends Omit<MachineDomain, "overlayPath"> {
  readonly login: MachineLogin;
  readonly disk: DiskSource;
}

/** The machine that a job is to get, and for whom it is. */
export interface Wanted {
  readonly name: string;
  readonly owner: Owner;
  /** The template, as the settings know it. */
  readonly template: string;
  readonly disk: DiskSource;
  readonly settings: MachineSettings;
  readonly keyFile: string | undefined;
}

/** What a machine's disk is made of. */
export interface DiskSource {
  readonly template: Template;
  /** Its size, if that is more than the template's. */
  readonly diskGib: number | null;
}

/** What it takes to make a machine. */
export interface Making {
  readonly pool: StoragePool;
  /** Counts until a domain does that stays. */
  readonly turn: QueueEntry | null;
  readonly timer: StepTimer;
}

/** The record of a machine that nobody has reached yet. */
export function newMetadata(
  owner: Owner,
  { template, login, settings, card }: {
    readonly template: string;
    readonly login: MachineLogin;
    readonly settings: MachineSettings;
    readonly card: Card | null;
  },
): MachineMetadata {
  return {
    ...owner,
    template,
    mac: card?.mac ?? randomMac(),
    user: settings.user,
    port: String(settings.port),
    key: login.key.file,
    shell: settings.shell,
    address: "",
    hostKey: login.hostKey?.fingerprint ?? "",
    keepMinutes: owner.attemptDir === "" ? "" : String(settings.keepMinutes), // by hand it stays
    ...{ failed: "", promisedUntil: "", silent: "", keptUntil: "", machine: "" },
  };
}

/** Boots the machine on a disk of its own and waits until it is ready. Throws SystemFailure. */
export async function boot(
  { name, disk, ...machine }: NewMachine,
  making: Making,
  stage: Stage,
): Promise<MachineMetadata> {
  const { pool, turn, timer } = making;
  const overlayPath = await createDisk(pool, name, disk);
  timer.end("overlay");
  // Not the MAC of an attempt to resume it, whose lease may not be the one that this guest gets, unless
  // the network keeps it for the card.
  const record = { ...machine.record, mac: machine.card?.mac ?? randomMac() };
  const booting = { ...machine, name, record, overlayPath };
  using domain = await startMachine(stage.connection, booting, { ...disk, signal: stage.signal });
  if (turn !== null) await leaveQueue(pool, turn); // the domain counts now
  await requireUnchanged(stage.connection, disk.template);
  timer.end("start");
  const { template } = record;
  const { domainType } = machine.settings;
  stage.log(`Started the machine "${name}" from the template "${template}" (${domainType})`);
  return await reach(domain, booting, { timer }, stage);
}

/** How to wait for a machine. */
export interface Reaching extends Pick<Making, "timer"> {
  /** The most that each wait may take, if that is less than the settings say. */
  readonly mostSeconds?: number;
  /** What else has to be done in the machine, once it has its filter. */
  readonly finish?: (signal: AbortSignal) => Promise<void>;
}

/**
 * Waits until a command runs in the machine, which gets its filter meanwhile, and gives its record,
 * which says that it is ready. Throws SystemFailure, with what can be known of the machine.
 */
export async function reach(
  domain: Domain,
  machine: Pick<NewMachine, "record" | "settings" | "login" | "filter" | "card">,
  reaching: Reaching,
  stage: Stage,
): Promise<MachineMetadata> {
  return await orExamined(domain.name, stage, async () => {
    const [reached] = await together(
      stage.signal,
      (signal) => reachBySsh(domain, machine, reaching, { ...stage, signal }),
      async (signal: AbortSignal) => {
        if (await setFilter(domain, machine, stage)) reaching.timer.end("filter");
        await reaching.finish?.(signal);
      },
    );
    const ready = { ...machine.record, ...reached };
    await writeMetadata(domain, ready);
    return ready;
  });
}

/** Waits until a command runs in the machine, and gives where, and the host key it has shown. */
async function reachBySsh(
  domain: Domain,
  { record, settings, login, card }: Parameters<typeof reach>[1],
  { timer, mostSeconds = Infinity }: Reaching,
  { connection, log, progress, signal }: Stage,
): Promise<Pick<MachineMetadata, "address" | "hostKey">> {
  const limits = { log, progress, signal };
  const addressSeconds = Math.min(settings.addressSeconds, mostSeconds);
  const sshSeconds = Math.min(settings.sshSeconds, mostSeconds);
  const { mac } = record;
  const { network, hostAddresses } = settings;
  const watch = watchKvm({ settings, connection });
  const address = network === "none"
    ? CHANNEL_ADDRESS
    : await waitForAddress(domain, { mac, network, hostAddresses, card, connection, watch }, {
      ...limits,
      timeoutSeconds: addressSeconds,
    });
  timer.end("address");
  const target = await loginTo(domain, { ...record, address }, login.key);
  const hostKey = await waitForSsh(target, async () => {
    await refuseEnded(domain);
    if (target.channel !== null) await watch(); // else its address has shown that KVM works
  }, {
    ...limits,
    // Without a network, nothing has waited for the boot.
    timeoutSeconds: sshSeconds + (target.channel === null ? 0 : addressSeconds),
  });
  timer.end("ssh");
  return { address, hostKey };
}

/** Adds to a failure what can be known of the machine, before undo removes it. */
async function orExamined<T>(machine: string, stage: Stage, wait: () => Promise<T>): Promise<T> {
  try {
    return await wait();
  } catch (cause) {
    if (stage.signal.aborted) throw cause;
    const { withPostMortem } = await import("./post_mortem/post_mortem.ts"); // what few machines need
    const failure = new SystemFailure({ what: `The machine "${machine}" did not come up`, cause });
    throw await withPostMortem(machine, failure, stage);
  }
}
