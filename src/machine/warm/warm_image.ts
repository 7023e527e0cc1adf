// SPDX-License-Identifier: GPL-2.0-or-later
import { XmlElement } from "@rgrove/parse-xml";
import type { Connection } from "../../libvirt/connection.ts";
import { orNull, VIR_ERR } from "../../libvirt/error.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { domainXml } from "../domain_xml.ts";
import { EMPTY_METADATA } from "../metadata.ts";
import type { Template } from "../storage/template.ts";
import { ofKind, volumeName } from "../storage/volume_names.ts";
import { readJson, readVolumeXml, removeVolume, writeJson } from "../storage/volumes.ts";
import { randomHex } from "../../random.ts";
import { find, rootOf } from "../../read_xml.ts";
import type { MachineSettings } from "../../settings/settings.ts";
import { sha256, shortHash } from "../../sha256.ts";

/**
 * The origin of a warm image, in the words of messages. The image is valid while all is the same.
 */
export type WarmOrigin = Readonly<Record<string, string>>;

/** The template of a warm image, by its name in the settings, and the image's id. */
export interface WarmName {
  readonly template: string;
  readonly id: string;
}

/** A complete warm image. The volume `warm-info` has all but the name. */
export interface WarmImage extends WarmName {
  /** ISO 8601. */
  readonly created: string;
  /** The number of bytes before the RAM in its volume. */
  readonly bytesBeforeRam: number;
  readonly origin: WarmOrigin;
}

/** An id for a new warm image. */
export function newWarmId(): string {
  return randomHex(5);
}

/** The name of the machine that creates warm images of this template, one at a time. */
export async function makerOf(template: string): Promise<string> {
  return `warm-${await shortHash(template)}`;
}

/** A disk that is no longer written to, the RAM of its machine, and last the info, which makes it complete. */
const KINDS = ["warm-disk", "warm-ram", "warm-info"] as const;

/** The names of the volumes of a warm image. */
export function warmVolumes({ template, id }: WarmName): string[] {
  return KINDS.map((kind) => volumeName(template, kind, id));
}

/** The ids of complete and incomplete warm images, with their templates. */
export function warmIds(volumes: readonly string[]): Map<string, string> {
  return new Map(ofKind(volumes, ...KINDS).map(({ name, fields: [id] }) => [id, name]));
}

/** The complete warm images of one template, or of all, the newest first. */
export async function findWarmImages(
  pool: StoragePool,
  template: string | null,
): Promise<WarmImage[]> {
  const volumes = await pool.volumeNames();
  const images: WarmImage[] = [];
  for (const [id, of] of warmIds(volumes)) {
    if (template !== null && of !== template) continue;
    if (!warmVolumes({ template: of, id }).every((volume) => volumes.includes(volume))) continue;
    const info = await readInfo(pool, volumeName(of, "warm-info", id));
    if (info !== null) images.push({ ...info, template: of, id });
  }
  return images.sort((a, b) => a.created < b.created ? 1 : -1);
}

/** Completes a warm image. */
export async function writeInfo(pool: StoragePool, image: WarmImage): Promise<void> {
  const { template, id, ...info } = image;
  await writeJson(pool, volumeName(template, "warm-info", id), info);
}

async function readInfo(
  pool: StoragePool,
  name: string,
): Promise<Omit<WarmImage, keyof WarmName> | null> {
  const info = await readJson(pool, name) as WarmImage | null;
  return typeof info?.created === "string" && Number.isInteger(info.bytesBeforeRam) &&
      typeof info.origin === "object"
    ? info
    : null;
}

/** The origin that a warm image of this template would have now. */
export async function warmOrigin(
  connection: Connection,
  { template, settings }: { readonly template: Template; readonly settings: MachineSettings },
): Promise<WarmOrigin> {
  const { ssh: { login, user, port }, guest, diskGib } = settings;
  const shell = login === "cloud-init" ? guest.shell : null; // cloud-init creates the user with it
  const machine = { login, user, shell, port, diskGib, xml: sampleXml(settings) };
  return {
    "the template": JSON.stringify(template),
    "the machine's settings": await sha256(JSON.stringify(machine)),
    "libvirt": String(await connection.libVersion()),
    "QEMU": String(await connection.hypervisorVersion()),
    "the host's CPU": await sha256(cpuOf(await connection.capabilities())),
  };
}

/**
 * Gives the newest valid warm image of the template with this name in the settings, and what changed since
 * the newest image of all.
 */
export async function chooseWarmImage(
  connection: Connection,
  pool: StoragePool,
  { name, ...of }: Parameters<typeof warmOrigin>[1] & { readonly name: string },
): Promise<{ readonly image: WarmImage | null; readonly changes: string | null }> {
  const images = await findWarmImages(pool, name);
  const [newest] = images;
  if (newest === undefined) return { image: null, changes: null };
  const origin = await warmOrigin(connection, of);
  return {
    image: findFitting(images, origin) ?? null,
    changes: changesSince(newest.origin, origin),
  };
}

/** The parts that have changed, such as `the template and QEMU`; null for nothing. */
function changesSince(then: WarmOrigin, now: WarmOrigin): string | null {
  const changed = Object.keys(now).filter((key) => then[key] !== now[key]);
  return changed.length === 0 ? null : changed.join(" and ");
}

/** The first valid one of these warm images. */
export function findFitting(images: readonly WarmImage[], now: WarmOrigin): WarmImage | undefined {
  return images.find(({ origin }) => changesSince(origin, now) === null);
}

/** The XML of any machine with these settings. */
function sampleXml(settings: MachineSettings): string {
  return domainXml({
    name: "",
    metadata: EMPTY_METADATA,
    settings,
    filter: null,
    card: null,
    overlayPath: "",
    consolePath: "",
    nvramPath: settings.firmware === "efi" ? "" : null,
    isWarm: true,
    seedPath: settings.ssh.login === "cloud-init" ? "" : null,
    credentialPath: settings.ssh.login === "systemd" ? "" : null,
  }).toString();
}

/** The host's CPU with its microcode. Without the counter's frequency, which differs at each boot. */
export function cpuOf(capabilities: string): string {
  const cpu = find(rootOf(capabilities), "host", "cpu");
  const parts = cpu?.children.filter((it) => !(it instanceof XmlElement && it.name === "counter"));
  return JSON.stringify(parts ?? null);
}

/** Removes a warm image. Its disk stays while machines use it, whose names it returns. */
export async function removeWarmImage(
  pool: StoragePool,
  { template, id }: WarmName,
): Promise<string[]> {
  await removeVolume(pool, volumeName(template, "warm-info", id));
  await removeVolume(pool, volumeName(template, "warm-ram", id));
  const users = await machinesOn(pool, { template, id });
  if (users.length === 0) await removeVolume(pool, volumeName(template, "warm-disk", id));
  return users;
}

/**
 * The warm images of which something can be removed: those that are older than another of their template,
 * and incomplete ones that no process is creating.
 */
export async function findDeadWarmImages(pool: StoragePool): Promise<WarmName[]> {
  const volumes = await pool.volumeNames();
  const newest = new Map<string, string>();
  for (const { template, id } of (await findWarmImages(pool, null)).reverse()) {
    newest.set(template, id);
  }
  const dead: WarmName[] = [];
  for (const [id, template] of warmIds(volumes)) {
    if (newest.get(template) === id) continue;
    if (volumes.includes(volumeName(await makerOf(template), "owner"))) continue;
    const isDiskAlone = !volumes.includes(volumeName(template, "warm-info", id)) &&
      !volumes.includes(volumeName(template, "warm-ram", id));
    if (isDiskAlone && (await machinesOn(pool, { template, id })).length > 0) continue;
    dead.push({ template, id });
  }
  return dead;
}

/** The names of the machines that use the disk of a warm image. */
export async function machinesOn(pool: StoragePool, { template, id }: WarmName): Promise<string[]> {
  using base = await pool.findVolume(volumeName(template, "warm-disk", id));
  if (base === null) return [];
  const path = await base.path();
  const machines: string[] = [];
  for (const { volume, name } of ofKind(await pool.volumeNames(), "overlay")) {
    using overlay = await pool.findVolume(volume);
    const xml = overlay && await orNull(VIR_ERR.NO_STORAGE_VOL, overlay.xml());
    if (xml !== null && readVolumeXml(xml).backing === path) machines.push(name);
  }
  return machines.sort();
}
