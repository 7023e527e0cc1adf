// SPDX-License-Identifier: GPL-2.0-or-later

/** What a disk image is, as the annotations of its manifest have it. */
export interface ImageFacts {
  readonly format: "qcow2" | "raw";
  /** The size of the disk that a guest sees. */
  readonly virtualBytes: number;
  /** The length of the image's file. */
  readonly fileBytes: number;
  /** `sha256:<hex>` of the image's file, for people: it is the layers that are checked. */
  readonly digest: string;
}

/**
 * How `template push` puts an image into a registry: the image's file in parts of equal length, each
 * compressed by zstd on its own, a layer each, in order. All of them in a row are one zstd file again.
 *
 * Parts are transferred at once, and again alone; those that are there already are not sent; each is small
 * enough for proxies that bound a request, and sent before a token is over. GitLab's registry refuses media
 * types that it does not know, of an artifact (`artifactType`) and of layers too. It knows these, which ORAS
 * uses for what has no type. So the annotations say what it is.
 */
export const CONFIG_TYPE = "application/vnd.unknown.config.v1+json";
export const LAYER_TYPE = "application/octet-stream";
export const MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json";
export const TITLE = "org.opencontainers.image.title";
const PREFIX = "vnd.libvirt-gci.template";

/** So long is a part, before it is compressed. */
const PART_BYTES = 64 * 1024 ** 2;
/** Registries bound the layers of an image: docker's clients at 127, GitLab.com at some more. */
const MOST_PARTS = 100;

/** The length of the parts of a file: the same for the same length, so that equal parts are sent once. */
export function partBytes(fileBytes: number): number {
  return PART_BYTES * Math.max(1, Math.ceil(fileBytes / (MOST_PARTS * PART_BYTES)));
}

/** The annotations of a manifest that say this. */
export function annotationsOf(
  { format, virtualBytes, fileBytes, digest }: ImageFacts,
): Record<string, string> {
  return {
    [`${PREFIX}.format`]: format,
    [`${PREFIX}.virtual-size`]: String(virtualBytes),
    [`${PREFIX}.size`]: String(fileBytes),
    [`${PREFIX}.digest`]: digest,
  };
}

/** What the annotations of a manifest say; null if it is not one of ours. */
export function factsIn(annotations: Readonly<Record<string, string>>): ImageFacts | null {
  const { format, ...said } = Object.fromEntries(
    ["format", "virtual-size", "size", "digest"].map((
      name,
    ) => [name, annotations[`${PREFIX}.${name}`]]),
  );
  const [virtualBytes, fileBytes] = [said["virtual-size"], said["size"]].map(readBytes);
  const digest = said["digest"];
  if (format !== "qcow2" && format !== "raw") return null;
  if (
    virtualBytes === undefined || fileBytes === undefined ||
    !/^sha256:[0-9a-f]{64}$/.test(digest ?? "")
  ) return null;
  return { format, virtualBytes, fileBytes, digest: digest ?? "" };
}

function readBytes(text: string | undefined): number | undefined {
  return /^[1-9]\d{0,15}$/.test(text ?? "") ? Number(text) : undefined;
}
