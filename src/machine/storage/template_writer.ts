// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../../errors.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { Domain } from "../../libvirt/domain.ts";
import { LibvirtError, orNull, VIR_ERR } from "../../libvirt/error.ts";
import type { Template } from "./template.ts";
import { shownName } from "./volume_names.ts";
import { childrenOf, find, rootOf } from "../../read_xml.ts";
import { virsh } from "../../shell.ts";

/** The disks that a domain may write to, by path or by pool and volume, without their backing files. */
export function writtenDisks(
  domainXml: string,
): {
  readonly path: string | null;
  readonly pool: string | null;
  readonly volume: string | null;
}[] {
  return childrenOf(find(rootOf(domainXml), "devices"), "disk")
    .filter((disk) => find(disk, "readonly") === undefined)
    .map((disk) => find(disk, "source")?.attributes ?? {})
    .map(({ file, dev, pool = null, volume = null }) => ({
      path: file ?? dev ?? null,
      pool,
      volume,
    }));
}

/**
 * The failure of a machine whose template, or its backing file, another process has open for writing. Null
 * if the start failed for another reason.
 */
export async function explainLock(
  cause: unknown,
  template: Template,
  connection: Connection,
): Promise<SystemFailure | null> {
  const lock = cause instanceof LibvirtError ? LOCKED.exec(cause.words) : null;
  if (lock === null) return null;
  const file = lock[1] ?? template.path;
  const writer = await findWriter(connection, { ...template, path: file });
  const who = writer === null ? "Another process" : `The domain "${writer}"`;
  const advice = writer === null
    ? `End the process that fuser shows: fuser -v ${file}`
    : `Shut it down: ${virsh(connection, "shutdown", writer)}, and give it a disk of its own`;
  return new SystemFailure({
    fault: "template",
    what:
      `${who} has the disk ${file} of the template "${
        shownName(template.volume)
      }" open for writing, so no ` +
      "machine can use it",
    cause,
    advice,
  });
}

/** QEMU's error for a file that another process has locked. */
const LOCKED =
  /Failed to get (?:\w+ )?"[^"]+" lock(?:\s+Is another process using the image \[(.+)\]\?)?/;

/** The running domain that may write to this disk, or null. */
async function findWriter(
  connection: Connection,
  { path, pool, volume }: Pick<Template, "path" | "pool" | "volume">,
): Promise<string | null> {
  using domains = await Domain.listActive(connection);
  for (const domain of domains) {
    const domainXml = await orNull(VIR_ERR.NO_DOMAIN, domain.xml()); // it may end at any moment
    const disks = domainXml === null ? [] : writtenDisks(domainXml);
    if (disks.some((disk) => disk.path === path || disk.pool === pool && disk.volume === volume)) {
      return domain.name;
    }
  }
  return null;
}
