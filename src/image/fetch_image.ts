// SPDX-License-Identifier: GPL-2.0-or-later
import { createHash } from "node:crypto";
import { orFailure, SystemFailure } from "../errors.ts";
import type { Checksum } from "./checksums.ts";
import { download, type DownloadOptions, versionOf } from "./download.ts";
import { httpRequest } from "./http.ts";
import { type FetchedFile, type ImageLimits, type LocalImage, openLocalImage } from "./image.ts";
import { ImageFile } from "./image_file.ts";
import { publishedChecksum } from "./published_checksum.ts";
import type { FileSource, HttpSource } from "./source.ts";
import { shownUrl } from "./url_login.ts";

type ImageSource = FileSource | HttpSource;

/** How to know that an image is the right one. */
export interface ImageChecks {
  /** In hexadecimal; null if it is not known. */
  readonly sha256: string | null;
  /** Where the publisher's SHA256SUMS or the like is; null if it is not to be asked. */
  readonly checksums: ImageSource | null;
  /** A file with the keys that may sign it; null if no signature is wanted. */
  readonly keyring: string | null;
}

export interface FetchOptions extends DownloadOptions, ImageLimits {
  readonly checks: ImageChecks;
  /** Told what the operator should know. */
  readonly warn: (line: string) => void;
}

/** An image, and what its source calls this version of it. */
export interface FetchedImage {
  /** Whoever gets it disposes of it. */
  readonly image: LocalImage;
  /** An ETag or a date; null if the source has none. */
  readonly version: string | null;
}

/** What is known of an image that was fetched before. */
export interface KnownImage extends Pick<FetchedImage, "version"> {
  readonly digest: string;
}

/** Fetches the image, checks it and looks at its header. Throws SystemFailure. */
export async function fetchImage(
  source: ImageSource,
  options: FetchOptions,
): Promise<FetchedImage> {
  const promised = await promisedChecksum(source, options);
  const sha256 = promised?.algorithm === "sha256" ? promised.hex : null;
  const { version, ...file } = source.kind === "file"
    ? await localFile(source, sha256)
    : await downloadedFile(source, sha256, options);
  if (promised?.algorithm !== "sha512") {
    return { image: await openLocalImage(file, options), version };
  }
  const found = await sha256Of(file, { sha512: promised.hex, signal: options.signal });
  return { image: await openLocalImage({ ...file, sha256: found }, options), version };
}

/**
 * Whether the source still has the version that was fetched, as far as a small request tells: by the
 * checksum that is promised, or else by an ETag or a date. Throws SystemFailure.
 */
export async function isUnchanged(
  source: ImageSource,
  known: KnownImage,
  options: FetchOptions,
): Promise<boolean> {
  const promised = await promisedChecksum(source, options);
  if (promised?.algorithm === "sha256") return known.digest === `sha256:${promised.hex}`;
  if (known.version === null) return false;
  if (source.kind === "file") return (await localFile(source, null)).version === known.version;
  using response = await httpRequest({ url: source.url, method: "HEAD" }, options);
  return response.status === 200 && versionOf(response.headers) === known.version;
}

type VersionedFile = FetchedFile & Pick<FetchedImage, "version">;

async function localFile({ path }: FileSource, sha256: string | null): Promise<VersionedFile> {
  const name = `"${path}"`;
  const { mtime, size } = await orFailure(Deno.stat(path), {
    what: `Cannot read the image ${name}`,
    advice: "Check its path, and that this user may read it",
  });
  const version = mtime && `${mtime.toISOString()} ${size}`;
  return { path, name, sha256, version, remove: () => Promise.resolve() };
}

async function downloadedFile(
  { url }: HttpSource,
  sha256: string | null,
  options: FetchOptions,
): Promise<VersionedFile> {
  const { mostBytes } = options;
  const file = await download({ url, bytes: null, sha256, mostBytes }, options);
  return { ...file, name: shownUrl(url), remove: async () => await file[Symbol.asyncDispose]() };
}

/** The SHA-256 of a file that has this SHA-512. Throws SystemFailure if it has another, and removes it. */
async function sha256Of(
  { path, name, remove }: FetchedFile,
  { sha512, signal }: { readonly sha512: string; readonly signal: AbortSignal },
): Promise<string> {
  await using undo = new AsyncDisposableStack();
  undo.defer(remove);
  const hashes = [createHash("sha256"), createHash("sha512")];
  using file = await ImageFile.open(path, name);
  for await (const chunk of file.chunks()) {
    signal.throwIfAborted();
    for (const hash of hashes) hash.update(chunk);
  }
  const [sha256 = "", found] = hashes.map((hash) => hash.digest("hex"));
  if (found !== sha512) {
    throw new SystemFailure({
      what: `The SHA-512 of the image ${name} is ${found}, not ${sha512}`,
      advice: "Fetch the image and its checksums again: they may be of two versions",
    });
  }
  undo.move();
  return sha256;
}

/** What the image must have; null if nobody said so, which is allowed by https, with a warning. */
async function promisedChecksum(
  source: ImageSource,
  { checks, warn, ...options }: FetchOptions,
): Promise<Checksum | null> {
  const { sha256, checksums, keyring } = checks;
  if (sha256 !== null) return { algorithm: "sha256", hex: sha256.toLowerCase() };
  if (checksums !== null) {
    return await publishedChecksum(source, checksums, { ...options, keyring });
  }
  if (source.kind === "file") return null;
  const name = shownUrl(source.url);
  if (source.url.protocol === "http:") {
    throw new SystemFailure({
      what: `Anybody on the way could change ${name}: it has no TLS, and no checksum is given`,
      advice: "Use an https:// URL, or give --sha256, or --checksums with --keyring",
    });
  }
  warn(`Only TLS protects ${name}: give --sha256, or --checksums with --keyring, to check it`);
  return null;
}
