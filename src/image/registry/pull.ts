// SPDX-License-Identifier: GPL-2.0-or-later
import { faultOf } from "../../errors.ts";
import { readDiskFormat } from "../disk_format.ts";
import type { HttpOptions } from "../http.ts";
import type { ImageLimits, LocalImage } from "../image.ts";
import { BlobDownloads } from "./blob_downloads.ts";
import { type CredentialPlaces, findCredentials } from "./credentials.ts";
import { chooseDisk, type DiskLayers } from "./disk_layers.ts";
import {
  choosePlatform,
  hostPlatform,
  isIndex,
  type Manifest,
  parseManifest,
  type Platform,
  unusable,
} from "./manifest.ts";
import { NamelessFile } from "./nameless_file.ts";
import { type Reference, referenceText } from "./reference.ts";
import { RegistryClient } from "./registry_client.ts";
import { unpackDisk } from "./unpack_disk.ts";

/** How a registry is asked. */
export interface RegistryOptions extends HttpOptions {
  readonly credentials: CredentialPlaces;
}

/** How an image is pulled. */
export interface PullOptions extends RegistryOptions, ImageLimits {
  /** Where blobs are downloaded to: of a pull that broke, the next one finds them there. */
  readonly directory: string;
  /** By default this host's. */
  readonly platform?: Platform;
  /** Told how many bytes there are of all blobs, and how many there will be. */
  readonly onBytes?: (bytes: number, total: number | null) => void;
  /** Told once if another process pulls a part of the same. */
  readonly onWait?: () => void;
  readonly pauseMs?: number;
}

/** The digest that the reference has or its tag points to now, by one request. Throws SystemFailure. */
export async function resolveDigest(
  reference: Reference,
  options: RegistryOptions,
): Promise<string> {
  return await (await openClient(reference, options, options.signal)).digest();
}

async function openClient(
  reference: Reference,
  options: RegistryOptions,
  signal: AbortSignal,
): Promise<RegistryClient> {
  const credentials = await findCredentials(reference, options.credentials);
  return new RegistryClient(reference, { ...options, credentials, signal, access: "pull" });
}

/**
 * Pulls the disk of an image: its blobs are downloaded, checked and unpacked. Whoever gets it disposes of
 * it. Throws SystemFailure, and leaves nothing but blobs that are right, as far as they came.
 */
export async function pull(reference: Reference, options: PullOptions): Promise<LocalImage> {
  const stop = new AbortController();
  const signal = AbortSignal.any([options.signal, stop.signal]);
  const name = referenceText(reference);
  const client = await openClient(reference, options, signal);
  const { manifest, digest } = await findManifest(client, name, options.platform ?? hostPlatform());
  const disk = chooseDisk(manifest, name);
  const blobs = blobsOf(disk, name, options.mostBytes);
  using undo = new DisposableStack();
  const file = undo.use(await NamelessFile.open(options.directory));
  const downloads = await BlobDownloads.fetch(client, blobs, { ...options, signal, stop });
  try {
    await unpackInto(file, disk, downloads, { name, ...options });
    const format = await readDiskFormat(file, { ...options, name: `"${name}"` });
    if (disk.kind === "parts" && disk.facts.format !== format.format) {
      throw unusable(name, `it calls itself ${disk.facts.format}, and is ${format.format}`);
    }
    await downloads.release("remove");
    const owned = undo.move();
    return {
      ...format,
      digest,
      fileBytes: file.bytes,
      open: () => ReadableStream.from(file.chunks),
      [Symbol.asyncDispose]: () => Promise.resolve(owned.dispose()),
    };
  } catch (error) {
    const isRight = options.signal.aborted || faultOf(error) === "storage";
    await downloads.release(isRight ? "leave" : "remove");
    options.signal.throwIfAborted();
    throw error;
  }
}

/** The image's own manifest, and the digest of what the reference points to. */
async function findManifest(
  client: RegistryClient,
  name: string,
  platform: Platform,
): Promise<{ readonly manifest: Manifest; readonly digest: string }> {
  const top = await client.manifest();
  const found = parseManifest(top, name);
  if (!isIndex(found)) return { manifest: found, digest: top.digest };
  const chosen = choosePlatform(found, platform, name);
  const manifest = parseManifest(await client.manifest(chosen.digest), name);
  if (isIndex(manifest)) throw unusable(name, "its index has an index in the place of an image");
  return { manifest, digest: top.digest };
}

/** What has to be downloaded. Throws SystemFailure if that is too much. */
function blobsOf(disk: DiskLayers, name: string, mostBytes: number): DiskLayers["layers"] {
  const bytes = disk.layers.reduce((sum, { size }) => sum + size, 0);
  const unpacked = disk.kind === "parts" ? disk.facts.fileBytes : 0;
  for (const [what, length] of [["has", bytes], ["unpacks to", unpacked]] as const) {
    if (length <= mostBytes) continue;
    throw unusable(
      name,
      `it ${what} ${length} bytes, more than the ${mostBytes} that are allowed`,
    );
  }
  return disk.layers;
}

/**
 * Unpacks the disk. Its layers are what the manifest says, and their frames have checksums: a digest of the
 * whole would say nothing more, and take as long as all the rest.
 */
async function unpackInto(
  file: NamelessFile,
  disk: DiskLayers,
  downloads: BlobDownloads,
  { name, mostBytes, signal }: { name: string; mostBytes: number; signal: AbortSignal },
): Promise<void> {
  const paths = disk.layers.map((layer) => downloads.path(layer));
  await unpackDisk(disk, paths, { name, mostBytes }, async (bytes) => {
    signal.throwIfAborted();
    await file.append(bytes);
  });
  if (disk.kind !== "parts" || file.bytes === disk.facts.fileBytes) return;
  throw unusable(name, `its parts are ${file.bytes} bytes, not ${disk.facts.fileBytes}`);
}
