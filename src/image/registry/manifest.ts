// SPDX-License-Identifier: GPL-2.0-or-later
import * as v from "valibot";
import { SystemFailure } from "../../errors.ts";
import { isDigest } from "./reference.ts";
import type { RawManifest } from "./registry_client.ts";
import { quoted } from "../../quoted.ts";

const ANNOTATIONS = v.optional(v.nullable(v.record(v.string(), v.string())));

const DESCRIPTOR = v.object({
  mediaType: v.string(),
  digest: v.pipe(v.string(), v.check(isDigest, "it has a digest that is no sha256")),
  size: v.pipe(v.number(), v.safeInteger(), v.minValue(0)),
  annotations: ANNOTATIONS,
});

const PLATFORM = v.object({
  architecture: v.string(),
  os: v.string(),
  variant: v.optional(v.string()),
});

const IMAGE = v.object({
  schemaVersion: v.literal(2),
  mediaType: v.optional(v.string()),
  artifactType: v.optional(v.string()),
  config: DESCRIPTOR,
  layers: v.array(DESCRIPTOR),
  annotations: ANNOTATIONS,
});

const INDEX = v.object({
  schemaVersion: v.literal(2),
  mediaType: v.optional(v.string()),
  manifests: v.array(v.object({ ...DESCRIPTOR.entries, platform: v.optional(PLATFORM) })),
});

/** A blob, or a manifest that another one names. */
export type Descriptor = v.InferOutput<typeof DESCRIPTOR>;

/** What an image in a registry consists of. */
export type Manifest = v.InferOutput<typeof IMAGE>;

type Index = v.InferOutput<typeof INDEX>;

/** A kind of machine in the registries' words, such as `amd64`. */
export interface Platform {
  readonly os: string;
  readonly architecture: string;
}

/** This host's kind of machine. */
export function hostPlatform(arch: string = Deno.build.arch): Platform {
  const names: Readonly<Record<string, string>> = { x86_64: "amd64", aarch64: "arm64" };
  return { os: "linux", architecture: names[arch] ?? arch };
}

const SCHEMA_1 = /^application\/vnd\.docker\.distribution\.manifest\.v1\+/;
const INDEXES: readonly string[] = [
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
];
const IMAGES: readonly string[] = [
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
];

/**
 * Reads an image's manifest, or an index of several. What it calls itself must be what the registry says, and
 * it may not be both, so that nobody else takes the same bytes for another image. `name` is for messages.
 * Throws SystemFailure.
 */
export function parseManifest(raw: RawManifest, name: string): Manifest | Index {
  const content = contentOf(raw.bytes);
  if (content === null) throw unusable(name, "its manifest is no JSON object");
  const said = typeof content["mediaType"] === "string" ? content["mediaType"] : null;
  const type = said ?? raw.mediaType;
  if (SCHEMA_1.test(type) || SCHEMA_1.test(raw.mediaType) || content["schemaVersion"] === 1) {
    throw unusable(name, "it has a manifest of docker's schema 1, whose layers nobody can verify");
  }
  if (said !== null && said !== raw.mediaType) {
    const words = `${quoted(said)}, and the registry says ${quoted(raw.mediaType)}`;
    throw unusable(name, `its manifest calls itself ${words}`);
  }
  if ("manifests" in content && ("layers" in content || "config" in content)) {
    throw unusable(name, "its manifest is one of an image and of an index at once");
  }
  if (INDEXES.includes(type)) return checked(INDEX, content, name);
  if (IMAGES.includes(type)) return checked(IMAGE, content, name);
  throw unusable(name, `its manifest is of the unknown type ${quoted(type)}`);
}

function contentOf(bytes: Uint8Array): Record<string, unknown> | null {
  try {
    const content = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    return content instanceof Object && !Array.isArray(content) ? content : null;
  } catch {
    return null;
  }
}

function checked<T extends v.GenericSchema>(
  schema: T,
  content: unknown,
  name: string,
): v.InferOutput<T> {
  const result = v.safeParse(schema, content);
  if (result.success) return result.output;
  const [issue] = result.issues;
  throw unusable(name, `its manifest is malformed at "${v.getDotPath(issue)}": ${issue.message}`);
}

export function isIndex(manifest: Manifest | Index): manifest is Index {
  return "manifests" in manifest;
}

/** The image of an index for this platform. Throws SystemFailure if there is none. */
export function choosePlatform({ manifests }: Index, wanted: Platform, name: string): Descriptor {
  const images = manifests.filter(({ mediaType }) => IMAGES.includes(mediaType));
  const fitting = images.filter(({ platform }) =>
    platform?.os === wanted.os && platform.architecture === wanted.architecture
  );
  // A variant may need a processor that this host has not, but v8 is what arm64 is.
  const plain = fitting.find(({ platform }) => (platform?.variant ?? "v8") === "v8");
  const only = images.length === 1 && images[0]?.platform === undefined ? images[0] : undefined;
  const chosen = plain ?? fitting[0] ?? only;
  if (chosen !== undefined) return chosen;
  const there = images.map(({ platform }) => `${platform?.os}/${platform?.architecture}`);
  throw unusable(
    name,
    `it has no image for ${wanted.os}/${wanted.architecture}, but for ` +
      quoted([...new Set(there)].join(", ")),
  );
}

/** The failure of an image that is not what we take. */
export function unusable(name: string, why: string, advice?: string): SystemFailure {
  return new SystemFailure({
    what: `Cannot use the image "${name}": ${why}`,
    advice: advice ?? "Use another image, or ask who pushed it",
  });
}
