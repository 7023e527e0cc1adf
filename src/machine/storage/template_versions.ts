// SPDX-License-Identifier: GPL-2.0-or-later
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { ownProcessInName, type ProcessInName, runsByName } from "../process.ts";
import { ofKind, volumeName } from "./volume_names.ts";
import { readJson, removeVolume, writeJson } from "./volumes.ts";

/**
 * A version of a template that `template add` put into the template pool: the image's volume, and a small
 * one with what is known of the image. The second is created last and makes the version complete. Jobs get
 * the newest complete one. libvirt cannot rename a volume, so a version never takes the place of another.
 */
export interface TemplateVersion {
  readonly template: string;
  /** Ten hexadecimal digits: of two versions of a template, the newer has the greater id. */
  readonly id: string;
}

/** Where an image came from. */
export interface SourceInfo {
  /** A path or a URL, without any login. */
  readonly source: string;
  /** What the source calls this version of it; null if it does not. */
  readonly version: string | null;
  /** Where its checksums are, and the file with the keys that sign these; null if there are none. */
  readonly checksums: string | null;
  readonly keyring: string | null;
  /** Whether the source is not to be read again: its digest was asked for, or its login is not kept. */
  readonly isPinned: boolean;
}

/** What is known of a version's image. */
export interface VersionInfo extends SourceInfo {
  /** ISO 8601. */
  readonly created: string;
  /** Of what was fetched, as `sha256:HEX`. */
  readonly digest: string;
}

/** The volume of the version's image. */
export function imageVolume({ template, id }: TemplateVersion): string {
  return volumeName(template, "template", id);
}

function infoVolume({ template, id }: TemplateVersion): string {
  return volumeName(template, "template-info", id);
}

/** The complete versions of each template, the newest first. */
export function completeVersions(volumes: readonly string[]): Map<string, TemplateVersion[]> {
  const names = new Set(volumes);
  const complete = ofKind(volumes, "template-info")
    .map(({ name: template, fields: [id] }) => ({ template, id }))
    .filter((version) => names.has(imageVolume(version)))
    .sort((a, b) => a.id < b.id ? 1 : -1);
  return Map.groupBy(complete, ({ template }) => template);
}

/** The newest complete version of each template. */
export function newestVersions(volumes: readonly string[]): TemplateVersion[] {
  return [...completeVersions(volumes).values()].flatMap(([newest]) => newest ?? []);
}

/**
 * The id of a new version: the time in seconds, and two digits more, by which two processes at once get
 * different ones. It is greater than those that exist, whatever the clock says.
 */
export function newVersionId(template: string, volumes: readonly string[]): string {
  const others = ofKind(volumes, "template", "template-info", "template-upload")
    .filter(({ name }) => name === template)
    .map(({ fields: [id] }) => Number.parseInt(id, 16));
  const now = Math.floor(Date.now() / 1000) * 256 + Math.floor(Math.random() * 256);
  return Math.max(now, ...others.map((id) => id + 1)).toString(16).padStart(10, "0");
}

/** When the version was begun, in milliseconds. */
function begunAt(id: string): number {
  return Number.parseInt(id.slice(0, -2), 16) * 1000;
}

/** Completes the version: jobs get it from now on. */
export async function completeVersion(
  pool: StoragePool,
  version: TemplateVersion,
  info: VersionInfo,
): Promise<void> {
  await writeJson(pool, infoVolume(version), info);
}

/** What is known of the version; null if its info is gone, or was never written. */
export async function readVersionInfo(
  pool: StoragePool,
  of: TemplateVersion,
): Promise<VersionInfo | null> {
  const info = await readJson(pool, infoVolume(of)) as VersionInfo | null;
  if (info === null || typeof info !== "object") return null;
  const { created, digest, source, version, checksums, keyring, isPinned } = info;
  const isWhole = [created, digest, source].every((it) => typeof it === "string") &&
    [version, checksums, keyring].every((it) => it === null || typeof it === "string") &&
    typeof isPinned === "boolean";
  return isWhole ? { created, digest, source, version, checksums, keyring, isPinned } : null;
}

/** An upload that a process began: an empty volume, from before the image's is created until its end. */
interface Upload extends TemplateVersion, ProcessInName {
  readonly volume: string;
}

/** On another host, for how long an upload may go on. */
const LONGEST_UPLOAD_MS = 7 * 24 * 3600 * 1000;

/** The name of the volume for an upload by this process. */
export async function ownUploadVolume({ template, id }: TemplateVersion): Promise<string> {
  const { process, host } = await ownProcessInName();
  return volumeName(template, "template-upload", id, process, host);
}

function uploadsIn(volumes: readonly string[]): Upload[] {
  return ofKind(volumes, "template-upload")
    .map(({ volume, name: template, fields: [id, process, host] }) => {
      return { volume, template, id, process, host };
    });
}

async function isLive(upload: Upload): Promise<boolean> {
  return await runsByName(upload) ?? Date.now() - begunAt(upload.id) < LONGEST_UPLOAD_MS;
}

/** A version that no job gets and no process uploads. */
export interface DeadVersion extends TemplateVersion {
  /** Whether it was a template; else its upload has ended before. */
  readonly isComplete: boolean;
}

/** The dead versions by the pool's volumes. Machines may use the complete ones. */
export async function deadVersions(volumes: readonly string[]): Promise<DeadVersion[]> {
  const complete = completeVersions(volumes);
  const live = new Set<string>();
  for (const upload of uploadsIn(volumes)) if (await isLive(upload)) live.add(imageVolume(upload));
  const all = ofKind(volumes, "template", "template-info", "template-upload")
    .map(({ name: template, fields: [id] }) => ({ template, id }));
  const each = new Map(all.map((version) => [imageVolume(version), version]));
  return [...each].filter(([image]) => !live.has(image)).flatMap(([image, version]) => {
    const [newest, ...older] = (complete.get(version.template) ?? []).map(imageVolume);
    if (newest === image) return [];
    return [{ ...version, isComplete: older.includes(image) }];
  });
}

/** The uploads that have ended although their volumes are there, because their process was killed. */
export async function endedUploads(volumes: readonly string[]): Promise<string[]> {
  const ended: string[] = [];
  for (const upload of uploadsIn(volumes)) if (!await isLive(upload)) ended.push(upload.volume);
  return ended;
}

/** Removes the version: first its info, after which no job gets it, last what says that it is uploaded. */
export async function removeVersion(pool: StoragePool, version: TemplateVersion): Promise<void> {
  await removeVolume(pool, infoVolume(version));
  await removeVolume(pool, imageVolume(version));
  for (const upload of uploadsIn(await pool.volumeNames())) {
    if (imageVolume(upload) === imageVolume(version)) await removeVolume(pool, upload.volume);
  }
}
