// SPDX-License-Identifier: GPL-2.0-or-later
import { GIB } from "../../bytes.ts";
import { jsonFlag } from "../../cli/arguments.ts";
import { defineCommand } from "../../cli/command.ts";
import { toTable } from "../../cli/table.ts";
import { durationText, secondsSince } from "../../duration.ts";
import { orNull, VIR_ERR } from "../../libvirt/error.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import type { Host } from "../../machine/context.ts";
import { isTemplateVolume, lookupTemplatePool } from "../../machine/storage/template.ts";
import { type FindUsers, findUsers } from "../../machine/storage/template_users.ts";
import {
  completeVersions,
  imageVolume,
  readVersionInfo,
  type VersionInfo,
} from "../../machine/storage/template_versions.ts";
import { readVolumeXml } from "../../machine/storage/volumes.ts";
import { toVisible } from "../../quoted.ts";

export const templateList = defineCommand("list", {
  description: "List the templates, and who uses them.",
  footer:
    "A template that `template add` did not create has no digest and no source. An old version stays while machines or warm images use it.",
  fields: { json: jsonFlag },
  run: ({ json }, { onHost, printer }) =>
    onHost(async ({ host }) => {
      const templates = await listTemplates(host);
      printer.printVisible(
        json ? toVisible(JSON.stringify(templates, null, 2)) : templateTable(templates),
      );
    }),
});

/** A template, as `template list` shows it; null is unknown. */
export interface ListedTemplate {
  readonly name: string;
  readonly volume: string;
  /** Whether jobs get a newer version. */
  readonly isOld: boolean;
  readonly format: string;
  /** The size of the disk that a guest sees. */
  readonly virtualBytes: number;
  /** What it takes of the pool. */
  readonly diskBytes: number;
  /** When it was added, or else last written, ISO 8601. */
  readonly created: string | null;
  readonly digest: string | null;
  readonly source: string | null;
  /** The machines that stand on it. */
  readonly machines: readonly string[];
  /** The templates whose warm images stand on it. */
  readonly warmImages: readonly string[];
}

/** The templates of the pool by their names, old versions after the newest. Throws SystemFailure. */
export async function listTemplates(host: Host): Promise<ListedTemplate[]> {
  using pool = await lookupTemplatePool(host);
  const volumes = await pool.volumeNames();
  const usersOf = await findUsers(host);
  const listed: (ListedTemplate | null)[] = [];
  for (const versions of completeVersions(volumes).values()) {
    for (const [i, version] of versions.entries()) {
      const info = await readVersionInfo(pool, version);
      const named = { name: version.template, volume: imageVolume(version), isOld: i > 0, info };
      listed.push(await describe(pool, named, usersOf));
    }
  }
  for (const volume of volumes.filter(isTemplateVolume)) {
    listed.push(await describe(pool, { name: volume, volume, isOld: false, info: null }, usersOf));
  }
  return listed.filter((template) => template !== null)
    .toSorted((a, b) => a.name < b.name ? -1 : a.name > b.name ? 1 : 0);
}

/** Null if it is gone just now, or is a directory. */
async function describe(
  pool: StoragePool,
  { info, ...named }: Pick<ListedTemplate, "name" | "volume" | "isOld"> & {
    readonly info: VersionInfo | null;
  },
  usersOf: FindUsers,
): Promise<ListedTemplate | null> {
  using volume = await pool.findVolume(named.volume);
  const xml = volume && await orNull(VIR_ERR.NO_STORAGE_VOL, volume.xml());
  const diskBytes = volume && await orNull(VIR_ERR.NO_STORAGE_VOL, volume.allocationBytes());
  if (xml === null || diskBytes === null) return null;
  const { path, format, capacityBytes: virtualBytes, modified } = readVolumeXml(xml);
  if (format === "dir") return null;
  const written = modified === "" ? null : new Date(Number(modified) * 1000).toISOString();
  const { machines, warmImages } = usersOf(path);
  return {
    ...named,
    format,
    virtualBytes,
    diskBytes,
    machines,
    warmImages,
    created: info?.created ?? written,
    digest: info?.digest ?? null,
    source: info?.source ?? null,
  };
}

const HEAD = ["TEMPLATE", "FORMAT", "SIZE", "DISK", "AGE", "DIGEST", "MACHINES", "SOURCE"];
const DIGEST_CHARACTERS = "sha256:".length + 12;

/** The templates as a table for people. */
export function templateTable(templates: readonly ListedTemplate[]): string {
  return toTable([HEAD, ...templates.map(rowOf)]);
}

function rowOf(template: ListedTemplate): string[] {
  const { name, isOld, format, virtualBytes, diskBytes, created, digest, machines } = template;
  return [
    isOld ? `${name} (old)` : name,
    format,
    `${Math.ceil(virtualBytes / GIB)} GiB`,
    `${Math.ceil(diskBytes / 1024 ** 2)} MiB`,
    created === null ? "-" : durationText(secondsSince(created)),
    digest?.slice(0, DIGEST_CHARACTERS) ?? "-",
    String(machines.length),
    template.source ?? "-",
  ].map((cell) => toVisible(cell).replaceAll("\n", "\\n"));
}
