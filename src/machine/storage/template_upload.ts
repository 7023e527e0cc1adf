// SPDX-License-Identifier: GPL-2.0-or-later
import { gib } from "../../bytes.ts";
import { explain, SystemFailure } from "../../errors.ts";
import type { LocalImage } from "../../image/image.ts";
import type { Connection } from "../../libvirt/connection.ts";
import { isLibvirtError } from "../../libvirt/error.ts";
import type { StoragePool } from "../../libvirt/storage_pool.ts";
import { type Context, failureOf, withReconnect } from "../context.ts";
import { poolSpace } from "../queue/host_load.ts";
import { createTemplatePool, refreshPool } from "./pools.ts";
import { lookupTemplatePool } from "./template.ts";
import {
  completeVersion,
  imageVolume,
  newVersionId,
  ownUploadVolume,
  removeVersion,
  type SourceInfo,
  type TemplateVersion,
} from "./template_versions.ts";
import { createImageVolume, createRawVolume, readVolumeXml, removeVolume } from "./volumes.ts";
import { virsh } from "../../shell.ts";
import { Transfer } from "../../transfer.ts";

/** A call must take a part of the image in this time, or write what libvirt has not yet written. */
const CALL_SECONDS = 600;

/**
 * Puts the image into the template pool as the newest version of the template. Nothing of it is visible to
 * jobs before it is whole. If that fails, or the signal aborts, it removes what it uploaded; what a killed
 * process leaves, gc removes. Throws SystemFailure.
 */
export async function uploadVersion(
  template: string,
  image: LocalImage,
  { info, context }: {
    readonly info: SourceInfo;
    readonly context: Context;
  },
): Promise<TemplateVersion> {
  const { host, signal } = context;
  await createTemplatePool(host);
  const callSeconds = Math.max(host.config.libvirt.callSeconds, CALL_SECONDS);
  await using connection = await host.connect(callSeconds); // a call that is cut off ends it
  using pool = await lookupTemplatePool({ config: host.config, connection });
  await refuseFullPool(template, image, { connection, pool });
  const version = { template, id: newVersionId(template, await pool.volumeNames()) };
  await using undo = new AsyncDisposableStack();
  undo.defer(() => undoUpload(version, context));
  try {
    const mark = await ownUploadVolume(version);
    (await createRawVolume(pool, mark, 0))[Symbol.dispose]();
    signal.throwIfAborted();
    await uploadImage(pool, version, image, context);
    const created = new Date().toISOString();
    await completeVersion(pool, version, { ...info, created, digest: image.digest });
    undo.move();
    await removeVolume(pool, mark).catch(() => {}); // gc removes it too
    return version;
  } catch (cause) {
    signal.throwIfAborted();
    throw explained(cause, template, pool);
  }
}

async function uploadImage(
  pool: StoragePool,
  version: TemplateVersion,
  image: LocalImage,
  { report, signal }: Context,
): Promise<void> {
  const { format, virtualBytes, fileBytes } = image;
  const name = imageVolume(version);
  using volume = await createImageVolume(pool, name, fileBytes);
  using transfer = new Transfer(`Uploading "${version.template}"`, report);
  const onBytes = (bytes: number): void => transfer.update(bytes, fileBytes);
  const sent = await volume.uploadFrom(image.open(), { signal, onBytes });
  if (sent !== fileBytes) {
    throw new Error(`the image has ${sent} bytes instead of ${fileBytes}`);
  }
  await refreshPool(pool); // which reads the image's header
  signal.throwIfAborted();
  using seen = await pool.lookupVolume(name);
  const facts = readVolumeXml(await seen.xml());
  if (facts.format === format && facts.capacityBytes === virtualBytes && facts.backing === null) {
    return;
  }
  throw new Error(
    `libvirt finds ${facts.format} with ${facts.capacityBytes} bytes in it` +
      `${facts.backing === null ? "" : ` on ${facts.backing}`}, not ${format} with ${virtualBytes}`,
  );
}

/** A raw image may have holes, which take no space. */
async function refuseFullPool(
  template: string,
  { format, fileBytes }: LocalImage,
  { connection, pool }: { readonly connection: Connection; readonly pool: StoragePool },
): Promise<void> {
  const { available } = await poolSpace(connection, pool);
  if (format === "raw" || fileBytes <= available) return;
  throw new SystemFailure({
    fault: "storage",
    what: `The template "${template}" needs ${gib(fileBytes)} GiB, and the storage pool ` +
      `"${pool.name}" has ${gib(available)} GiB left`,
    advice: adviceForSpace(pool),
  });
}

function adviceForSpace(pool: StoragePool): string {
  return `Free space in the pool: libvirt-gci template list, and ${
    virsh(pool, "pool-info", pool.name)
  }`;
}

/** Removes what was uploaded. The caller throws what failed first. */
async function undoUpload(version: TemplateVersion, context: Context): Promise<void> {
  try {
    await withReconnect(context, async ({ host }) => {
      using pool = await lookupTemplatePool(host);
      await removeVersion(pool, version);
    });
  } catch (error) {
    context.report.warn(
      `Could not remove what was uploaded of "${version.template}". Once libvirt answers, ` +
        `libvirt-gci gc removes it: ${explain(error)}`,
    );
  }
}

function explained(cause: unknown, template: string, pool: StoragePool): unknown {
  if (cause instanceof SystemFailure) return cause; // the image is not what was promised, say
  const isFull = isLibvirtError(cause) && /no space left/i.test(cause.words);
  return failureOf(cause, `uploaded the template "${template}"`, {
    fault: "storage",
    what: isFull
      ? `The storage pool "${pool.name}" has no space left for the template "${template}"`
      : `Cannot upload the template "${template}" to the storage pool "${pool.name}"`,
    advice: isFull
      ? adviceForSpace(pool)
      : isLibvirtError(cause)
      ? cause.advice
      : "Check the image: qemu-img check IMAGE",
  });
}
