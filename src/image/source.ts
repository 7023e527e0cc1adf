// SPDX-License-Identifier: GPL-2.0-or-later
import { UsageError } from "../errors.ts";

export interface FileSource {
  readonly kind: "file";
  readonly path: string;
}

export interface HttpSource {
  readonly kind: "http";
  readonly url: URL;
}

/** An image in a registry, which src/image/registry/ reads and pulls. */
export interface OciSource {
  readonly kind: "oci";
  readonly reference: string;
}

/** Where an image comes from. */
export type Source = FileSource | HttpSource | OciSource;

const SCHEME = /^([a-z][a-z\d+.-]*):\/\//i;
const ADVICE = "Use a file, an https:// or http:// URL, or oci://REGISTRY/NAME:TAG";

/** What the operator calls the source. Throws UsageError, which has no more of the text than its scheme. */
export function parseSource(text: string): Source {
  const scheme = SCHEME.exec(text)?.[1]?.toLowerCase();
  if (scheme === undefined) return fileSource(text);
  if (scheme === "oci" || scheme === "oci+http") return { kind: "oci", reference: text };
  const url = URL.parse(text);
  if (scheme === "http" || scheme === "https") {
    if (url !== null && url.hostname !== "") return { kind: "http", url };
    throw new UsageError({ what: "The source of the image is no valid URL", advice: ADVICE });
  }
  if (scheme === "file" && url?.hostname === "") {
    return fileSource(decodeURIComponent(url.pathname));
  }
  throw new UsageError({
    what: `An image's source cannot have the scheme "${scheme}"`,
    advice: ADVICE,
  });
}

function fileSource(path: string): FileSource {
  if (path === "") throw new UsageError({ what: "The image has no source", advice: ADVICE });
  return { kind: "file", path };
}

/** What checksum files call the image: the last part of its path. */
export function fileNameOf(source: FileSource | HttpSource): string {
  const path = source.kind === "file" ? source.path : source.url.pathname;
  const name = path.slice(path.lastIndexOf("/") + 1);
  if (source.kind === "file") return name;
  try {
    return decodeURIComponent(name);
  } catch {
    return name; // a lone percent sign
  }
}
