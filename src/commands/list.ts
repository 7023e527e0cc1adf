// SPDX-License-Identifier: GPL-2.0-or-later
import { jsonFlag } from "../cli/arguments.ts";
import { defineCommand } from "../cli/command.ts";
import { noPaint, type Paint } from "../cli/printer.ts";
import { toTable } from "../cli/table.ts";
import { durationText, secondsSince } from "../duration.ts";
import type { Connection } from "../libvirt/connection.ts";
import { Domain, type DomainState } from "../libvirt/domain.ts";
import { StoragePool } from "../libvirt/storage_pool.ts";
import type { Context, Host } from "../machine/context.ts";
import { findMachines, type FoundMachine } from "../machine/inventory.ts";
import { isKept } from "../machine/metadata.ts";
import { entriesIn, isLiveEntry, longestQueueSeconds } from "../machine/queue/queue.ts";
import { waitingIn } from "../machine/standby/waiting.ts";
import { findActivePool } from "../machine/storage/pools.ts";
import { ofKind, volumeName } from "../machine/storage/volume_names.ts";
import { lookupNeeds, type Need, withoutTakers } from "../machine/unneeded.ts";
import { toVisible } from "../quoted.ts";

export const command = defineCommand("list", {
  description: "List the machines of libvirt-gci, and the leftovers of earlier ones.",
  footer:
    "States: standby (for the next job), waiting (for room on the host), starting, ready, crashed (kernel panic), halted (the host cannot write to its disk), kept (after its job), orphan (runs but is no longer needed), leftover (does not run).",
  fields: { json: jsonFlag },
  run: ({ json }, { onHost, printer }) =>
    onHost(async (context) => {
      const machines = await listMachines(context);
      if (json) return printer.print(listJson(machines));
      printer.printVisible(listTable(machines, printer.paint));
      const images = await listWarmImages(context.host);
      if (images.length > 0) printer.printVisible(`\n${warmTable(images)}`);
    }),
});

/** A machine as the command `list` shows it; null is unknown. */
export interface ListedMachine {
  readonly machine: string;
  /** The name of its domain, which is another if the machine took over a standby machine. */
  readonly domain: string;
  /** Empty by hand. */
  readonly job: string | null;
  readonly project: string | null;
  readonly template: string | null;
  /** ISO 8601. */
  readonly created: string | null;
  /** The help of the command explains them. */
  readonly state: State;
  /** Until when it is kept, whatever becomes of its job, ISO 8601. */
  readonly keptUntil: string | null;
  /** Why gc would remove it. */
  readonly why: string | null;
  readonly address: string | null;
  readonly memoryMib: number | null;
  /** The space that its volumes take in the pools. */
  readonly diskBytes: number;
}

/** The age up to which a machine without a domain counts as starting. */
const STARTING_SECONDS = 600;

export async function listMachines(context: Context): Promise<ListedMachine[]> {
  const { host } = context;
  const found = await findMachines(context, { refresh: false });
  const machines = withoutTakers(await lookupNeeds(found, host));
  return await Promise.all(machines.map(async (machine) => {
    const { metadata, owner, why } = machine;
    const life = metadata && await lifeOf(machine.name, host.connection);
    return {
      machine: metadata?.machine || machine.name,
      domain: machine.name,
      job: owner?.job ?? null,
      project: owner?.project ?? null,
      template: metadata?.template ?? null,
      created: toIso(owner?.created ?? null),
      state: isWaiting(machine)
        ? "standby"
        : await isQueued(machine, host)
        ? "waiting"
        : stateOf(machine, life?.state ?? null),
      keptUntil: toIso(metadata?.keptUntil ?? null),
      why,
      address: metadata?.address || null,
      memoryMib: life?.memoryMib ?? null,
      diskBytes: await diskOf(machine.volumes, host.connection),
    };
  }));
}

function toIso(time: number | null): string | null {
  return time === null ? null : new Date(time).toISOString();
}

function isWaiting({ hasDomain, volumes }: FoundMachine): boolean {
  return hasDomain && waitingIn(volumes.map(({ name }) => name)).length > 0;
}

/** Whether it waits in the host's queue or in its project's. It gets its disk after that. */
async function isQueued(
  { name, volumes, why }: FoundMachine & Need,
  { config }: Host,
): Promise<boolean> {
  if (volumes.some((volume) => volume.name === volumeName(name, "overlay"))) return false;
  const names = volumes.map((volume) => volume.name);
  if (why === null && ofKind(names, "project").length > 0) return true;
  const entries = entriesIn(names);
  const limits = { longestSeconds: longestQueueSeconds(config.host) };
  return (await Promise.all(entries.map((entry) => isLiveEntry(entry, limits)))).includes(true);
}

function stateOf({ metadata, owner, why }: Need, domainState: DomainState | null): State {
  if (metadata !== null) {
    if (why !== null) return "orphan";
    if (domainState === "crashed" || domainState === "halted") return domainState;
    return isKept(metadata) ? "kept" : metadata.address ? "ready" : "starting";
  }
  const seconds = secondsSince(owner?.created ?? Date.now());
  return why === null && seconds < STARTING_SECONDS ? "starting" : "leftover";
}

/** The values of its domain now; null if it has just ended. */
async function lifeOf(
  machine: string,
  connection: Connection,
): Promise<{ readonly memoryMib: number; readonly state: DomainState } | null> {
  using domain = await Domain.find(connection, machine);
  if (domain === null) return null;
  try {
    return { memoryMib: await domain.memoryMib(), state: await domain.state() };
  } catch {
    return null;
  }
}

async function diskOf(volumes: FoundMachine["volumes"], connection: Connection): Promise<number> {
  const sizes = volumes.map(async ({ pool: poolName, name }) => {
    using pool = await StoragePool.find(connection, poolName);
    using volume = pool && await pool.findVolume(name);
    return volume ? await volume.allocationBytes().catch(() => 0) : 0; // it may be gone just now
  });
  return (await Promise.all(sizes)).reduce((sum, size) => sum + size, 0);
}

export function listJson(machines: readonly ListedMachine[]): string {
  return JSON.stringify(machines, null, 2);
}

const HEAD = ["MACHINE", "JOB", "PROJECT", "TEMPLATE", "AGE", "STATE", "ADDRESS", "MEMORY", "DISK"];
const STATE_COLUMN = HEAD.indexOf("STATE");

const STATE_COLOURS = {
  standby: "green",
  ready: "green",
  waiting: "yellow",
  starting: "yellow",
  kept: "yellow",
  crashed: "red",
  halted: "red",
  orphan: "red",
  leftover: "red",
} as const;

type State = keyof typeof STATE_COLOURS;
export function listTable(machines: readonly ListedMachine[], paint: Paint = noPaint): string {
  const rows = [HEAD, ...machines.map(rowOf)];
  return toTable(rows, (padded, row, column) => {
    const state = machines[row - 1]?.state;
    if (state === undefined || column !== STATE_COLUMN) return padded;
    const text = padded.trimEnd();
    return paint(STATE_COLOURS[state], text) + padded.slice(text.length);
  });
}

function remaining(until: string | null): string {
  return durationText(Math.max(0, -secondsSince(until ?? 0)));
}

function rowOf(machine: ListedMachine): string[] {
  const { created, memoryMib, diskBytes } = machine;
  const cells = [
    machine.machine,
    machine.job,
    machine.project,
    machine.template,
    created && durationText(secondsSince(created)),
    machine.state === "kept" ? `kept ${remaining(machine.keptUntil)} more` : machine.state,
    machine.address,
    memoryMib === null ? null : `${memoryMib} MiB`,
    `${Math.ceil(diskBytes / 1024 ** 2)} MiB`,
  ];
  return cells.map(toCell);
}

function toCell(text: string | null): string {
  return toVisible(text || "-").replaceAll("\n", "\\n");
}

interface ListedWarmImage {
  readonly template: string;
  readonly created: string;
  readonly machines: readonly string[];
  readonly diskBytes: number;
}

async function listWarmImages({ connection, config }: Host): Promise<ListedWarmImage[]> {
  const { findWarmImages, machinesOn, warmVolumes } = await import("../machine/warm/warm_image.ts");
  using pool = await findActivePool(connection, config.pools.overlays);
  const images = pool === null ? [] : await findWarmImages(pool, null);
  return await Promise.all(images.map(async (image) => {
    const { template, created } = image;
    const volumes = warmVolumes(image).map((name) => ({ pool: config.pools.overlays, name }));
    return {
      template,
      created,
      machines: pool === null ? [] : await machinesOn(pool, image),
      diskBytes: await diskOf(volumes, connection),
    };
  }));
}

const WARM_HEAD = ["WARM IMAGE OF", "AGE", "MACHINES", "DISK"];

function warmTable(images: readonly ListedWarmImage[]): string {
  return toTable([
    WARM_HEAD,
    ...images.map(({ template, created, machines, diskBytes }) => [
      toCell(template),
      durationText(secondsSince(created)),
      String(machines.length),
      `${Math.ceil(diskBytes / 1024 ** 2)} MiB`,
    ]),
  ]);
}
