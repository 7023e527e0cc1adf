// SPDX-License-Identifier: GPL-2.0-or-later
import { GIB } from "../../bytes.ts";
import { cacheDirectory } from "../../cli/directories.ts";
import { UsageError } from "../../errors.ts";
import { openDownloadDirectory } from "../../image/download_directory.ts";
import {
  type FetchedImage,
  fetchImage,
  type FetchOptions,
  isUnchanged,
} from "../../image/fetch_image.ts";
import type { RegistryOptions } from "../../image/registry/pull.ts";
import { parseReference, referenceText } from "../../image/registry/reference.ts";
import {
  fileNameOf,
  type FileSource,
  type HttpSource,
  parseSource,
  type Source,
} from "../../image/source.ts";
import { shownUrl } from "../../image/url_login.ts";
import type { Env } from "../../job/job.ts";
import type { Context } from "../../machine/context.ts";
import type { SourceInfo, VersionInfo } from "../../machine/storage/template_versions.ts";
import { Transfer } from "../../transfer.ts";

/** Bounds that no image of a template comes near, but an attack may. */
const MOST_BYTES = 256 * GIB;
const MOST_VIRTUAL_BYTES = 16_384 * GIB;

/** An image that is asked for, in the words of the command line. */
export interface ImageRequest {
  readonly source: string;
  readonly sha256?: string | null | undefined;
  readonly checksums?: string | null | undefined;
  readonly keyring?: string | null | undefined;
}

/** What fetching needs. */
export interface FetchContext {
  readonly env: Env;
  readonly context: Pick<Context, "signal"> & {
    readonly report: Pick<Context["report"], "log" | "warn" | "progress">;
  };
}

/** Throws UsageError if the request cannot be meant so. */
export function checkRequest({ source, sha256, checksums, keyring }: ImageRequest): void {
  const { kind } = requestedSource(source);
  if (kind === "oci" && (sha256 || checksums)) {
    throw new UsageError({
      what: "The digest of an image in a registry is part of its name",
      advice: "Write oci://HOST/PATH:TAG@sha256:HEX",
    });
  }
  if (checksums) checksumSource(checksums);
  if (keyring && !checksums || sha256 && checksums) {
    throw new UsageError({
      what: "An image is checked by --sha256, or by --checksums with or without --keyring",
      advice: "Omit what does not belong to it",
    });
  }
}

/** Fetches the image. The caller disposes of it. Throws SystemFailure. */
export async function fetchRequested(
  request: ImageRequest,
  { env, context }: FetchContext,
): Promise<FetchedImage> {
  const source = requestedSource(request.source);
  using transfer = new Transfer(`Downloading ${shownSource(source)}`, context.report);
  const options = { ...await optionsOf(request, { env, context }), onBytes: transfer.update };
  if (source.kind !== "oci") return await fetchImage(source, options);
  const { pull } = await import("../../image/registry/pull.ts"); // most images need no registry
  const image = await pull(parseReference(source.reference), options);
  return { image, version: null };
}

/** Whether the source has the version that is known, as far as it tells without its content. */
export async function isSourceUnchanged(
  known: VersionInfo,
  { env, context }: FetchContext,
): Promise<boolean> {
  const options = await optionsOf(known, { env, context });
  const source = requestedSource(known.source);
  if (source.kind !== "oci") return await isUnchanged(source, known, options);
  const { resolveDigest } = await import("../../image/registry/pull.ts");
  return await resolveDigest(parseReference(source.reference), options) === known.digest;
}

/** What is kept of a request, so that an update can repeat it: no login, no signature of a URL. */
export function keptOf(request: ImageRequest, version: string | null): SourceInfo {
  const source = requestedSource(request.source);
  const checksums = request.checksums ? checksumSource(request.checksums) : null;
  const urls = [source, checksums].flatMap((it) => it?.kind === "http" ? [it.url] : []);
  const isSecret = urls.some(({ username, password, search }) =>
    username + password + search !== ""
  );
  return {
    source: keptText(source),
    version,
    checksums: checksums && keptText(checksums),
    keyring: request.keyring ? absolute(request.keyring) : null,
    isPinned: Boolean(request.sha256) || isSecret,
  };
}

/** What speaking with a registry needs. */
export async function registryOptions(
  { env, context: { signal } }: FetchContext,
): Promise<RegistryOptions & { readonly directory: string }> {
  const directory = cacheDirectory(env);
  await openDownloadDirectory(directory);
  const set = Object.entries(env).flatMap(([k, v]) => v === undefined ? [] : [[k, v]]);
  return {
    env: Object.fromEntries(set),
    credentials: { env, uid: Deno.uid() },
    directory,
    signal,
  };
}

/** What an image from this source is called in a registry. */
export function titleOf(source: string): string {
  const from = requestedSource(source);
  const name = from.kind === "oci"
    ? parseReference(from.reference).repository.split("/").at(-1) ?? ""
    : fileNameOf(from);
  return name.replace(/\.(qcow2|img|raw)$/, "") || "disk";
}

async function optionsOf(
  { sha256 = null, checksums, keyring }: Omit<ImageRequest, "source">,
  fetching: FetchContext,
): Promise<FetchOptions & RegistryOptions & { readonly directory: string }> {
  const { log, warn } = fetching.context.report;
  return {
    ...await registryOptions(fetching),
    checks: {
      sha256,
      checksums: checksums ? checksumSource(checksums) : null,
      keyring: keyring ? absolute(keyring) : null,
    },
    mostBytes: MOST_BYTES,
    mostVirtualBytes: MOST_VIRTUAL_BYTES,
    onWait: () => log("Waiting for another process that downloads the same image"),
    warn,
  };
}

/** The source, with an absolute path. Throws UsageError. */
function requestedSource(text: string): Source {
  const source = parseSource(text);
  if (source.kind === "oci") parseReference(source.reference);
  return source.kind === "file" ? { kind: "file", path: absolute(source.path) } : source;
}

function checksumSource(text: string): FileSource | HttpSource {
  const source = requestedSource(text);
  if (source.kind !== "oci") return source;
  throw new UsageError({
    what: "Checksums do not come from a registry",
    advice: "Use a file, or an https:// URL",
  });
}

function absolute(path: string): string {
  return path.startsWith("/") ? path : `${Deno.cwd()}/${path}`;
}

function shownSource(source: Source): string {
  return source.kind === "http" ? shownUrl(source.url) : `"${keptText(source)}"`;
}

function keptText(source: Source): string {
  switch (source.kind) {
    case "file":
      return source.path;
    case "http":
      return source.url.origin + source.url.pathname;
    case "oci":
      return referenceText(parseReference(source.reference));
  }
}
